"""Main text of HTML pages and of markup, in a process of its own: started by `data/parser.py`, never imported by it.

Pages are written by strangers, and parsers of C and Rust hang, crash or take all memory on some. The first request
has the settings; each later one is a page in UTF-8. A reply is `+` and the text, or `-` and the reason that there is
none. A page that takes more of the processor than it may ends this process by SIGPROF, which the caller sees.
"""

import json
import logging
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

MAX_TEXT = 32 << 20  # bytes; the longest pages that are read have 16 MB


def with_trafilatura() -> Callable[[str], str | None]:
    """FineWeb's, but without its memory of earlier pages, which makes a page's text depend on those before it."""
    import trafilatura

    def extract(page: str) -> str | None:
        return trafilatura.extract(page, favor_precision=True, include_comments=False, deduplicate=False)

    return extract


def with_resiliparse() -> Callable[[str], str | None]:
    """Ten times as fast, by simpler rules."""
    from resiliparse.extract.html2text import extract_plain_text

    def extract(page: str) -> str | None:
        return extract_plain_text(page, main_content=True, alt_texts=False)

    return extract


def with_mwparserfromhell() -> Callable[[str], str | None]:
    """For MediaWiki's markup instead of HTML."""
    import mwparserfromhell
    from mwparserfromhell import definitions

    definitions.INVISIBLE_TAGS += ["ref", "references", "table", "style", "ce", "chem", "hiero"]

    def extract(markup: str) -> str | None:
        # Bold and italics stay as quotes, which are taken out later: they take long to tell apart.
        return mwparserfromhell.parse(markup, skip_style_tags=True).strip_code()

    return extract


METHODS = {
    "trafilatura": with_trafilatura,
    "resiliparse": with_resiliparse,
    "mwparserfromhell": with_mwparserfromhell,
}


def answer(extract: Callable[[str], str | None], page: bytes, seconds: float) -> bytes:
    """The text of a page; the timer, of the processor's time, ends this process."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        text = (extract(page.decode("utf-8")) or "").encode("utf-8", "replace")
    except MemoryError:
        return b"-extract_memory"
    except Exception:  # noqa: BLE001 - a page that a parser does not take is named, whatever the parser raises
        return b"-extract_error"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return b"+" + text if len(text) <= MAX_TEXT else b"-extract_too_long"


def main() -> None:
    """Answers requests until the other end closes."""
    # A program that has loaded libtpu ignores SIGPROF, and so would this one: both are inherited.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    connection = Connection(int(sys.argv[1]))
    settings = json.loads(connection.recv_bytes())
    logging.disable(logging.CRITICAL)
    extract = METHODS[settings["method"]]()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = settings["memory_mb"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory if most < 0 else min(memory, most), most))
    connection.send_bytes(b"+")
    while True:
        try:
            page = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(answer(extract, page, settings["seconds"]))


if __name__ == "__main__":
    main()
