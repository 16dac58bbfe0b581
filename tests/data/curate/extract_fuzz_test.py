"""Pages from strangers, nearly right: each is a text or a drop for a reason, and costs nobody else anything."""

import gzip
import re
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.curate.extract import Extract
from lab import real

METHODS = ("trafilatura", "resiliparse")
WHY = ("empty", "error", "timeout", "memory", "crash", "too_long")  # documented, after extract_

PROSE = "The river rose in the night, and by morning the lower fields lay under water as far as the old mill."
ARTICLE = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Flood</title>
<style>p {{ color: red }}</style><script type="application/ld+json">{{"@type": "Article"}}</script></head>
<body class="page"><nav><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>
<article id="main"><h1>Flood</h1><p class='lead'>{PROSE}</p><!-- an advertisement --><p>{PROSE} <b>{PROSE}</b><br/>
{PROSE}</p><blockquote>{PROSE}</blockquote><ul><li>{PROSE}</li><li>{PROSE}</li></ul></article><aside>{PROSE}</aside>
<footer>&copy; 2026 &mdash; all rights</footer></body></html>"""
TABLE = f"""<html><body><h2>Levels</h2><table border=1><thead><tr><th>Place<th>Level</thead><tbody>
{"<tr><td>Old mill &amp; bridge<td>3.2&nbsp;m" * 5}</tbody></table><p>{PROSE} {PROSE} {PROSE}
<pre><code>if a &lt; b: flood()</code></pre><form action=/x><input value="a > b"><textarea><p>no paragraph</textarea>
<select><option>one<option>two</select></form>"""
POST = f'<div class="post"><i>anna</i><div class="body">{PROSE}<a href="http://a.org/?a=1&b=2">here</a></div></div>'
FORUM = f"<html><body><div id=posts>{POST * 4}</div><iframe src=x></iframe></body></html>"
XHTML = f"""<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "x"
[<!ENTITY a "aaaa">]><html xmlns="http://www.w3.org/1999/xhtml" xml:lang="de"><body>
<script><![CDATA[ if (a < b) ]]></script><div xml:base="x"><p>Über dem Fluß stand früh der Nebel. {PROSE}&a;</p>
<p>{PROSE} {PROSE}</p></div></body></html>"""
OTHERS = f"""<html><body><svg viewBox="0 0 1 1"><title>t</title><foreignObject><p>{PROSE}</p></foreignObject></svg>
<math><mi>x</mi><annotation-xml encoding="text/html"><p>{PROSE}</p></annotation-xml></math>
<template><p>{PROSE}</p></template><noscript><p>{PROSE}</p></noscript><p>河水在夜里上涨。</p>
<p>{PROSE} {PROSE}</p><object><param name=a></object><ruby>漢<rt>kan</rt></ruby>
<details><summary>{PROSE}</summary>{PROSE}</details>"""
SEEDS = {"article": ARTICLE, "table": TABLE, "forum": FORUM, "XHTML": XHTML, "others": OTHERS}

TAG = re.compile(r"<[^<>]*>")
MARKUP = """
<!-- --> <!--> --!> <![CDATA[ ]]> <!DOCTYPE <? ?> < > </ & &# &#xD800; &#0; &#99999999; &#x110000; &none; &amp;lt;p>
="' <script> </script> <style> <textarea> <title> <plaintext> <xmp> <noscript> <template> <svg> <math> <select> <p>
</p> <html> </html> <head> <body> </body> <frameset> <table> <tr> <td/colspan=999999999> <a/href=' <img/src=:
<base/href=x> <meta/charset=utf-16> <meta/charset=none> <meta/http-equiv=refresh/content=0>
"""
CHARACTERS = ("\0", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "\x1b[2J", "\x85", "\uffff", "\U0010ffff", "\r\n\r")
PIECES = [*MARKUP.split(), *CHARACTERS, "&" * 500, "<br>" * 200, "\t" * 300, PROSE]
NESTED = "div b a table tr td ul li p span blockquote font svg math x-y ü".split()
NAMES = ("class", "href", "style", "a\0b", "ü", "id", "xml:lang", "=", "/", '"')
VALUES = ("x" * 200_000, '"', "a=b " * 300, "\0", "'\"<>", "&quot;" * 50, "javascript:x", "\ud800")
CHARSETS = ("latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "shift_jis", "koi8-r", "utf-7")
TAGS = ("drop", "repeat", "move", "nest", "attribute")
BYTES = ("flip", "cut", "remove", "zeros")
KINDS = [*TAGS, *BYTES, "insert", "insert", "insert", "splice", "charset"]


class Change(NamedTuple):
    """What happens to a page at a place, told as a fraction of its length."""

    kind: str
    place: float
    number: int

    def apply(self, page: str) -> str:
        if self.kind in TAGS:
            return self._to_tag(page)
        if self.kind in BYTES:
            return self._to_bytes(page.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogateescape")
        if self.kind == "charset":
            return page.encode("utf-8", "replace").decode(CHARSETS[self.number % len(CHARSETS)], "replace")
        at = int(self.place * len(page))
        if self.kind == "insert":
            return page[:at] + PIECES[self.number % len(PIECES)] + page[at:]
        other = [*SEEDS.values()][self.number % len(SEEDS)]  # splice
        return page[:at] + other[self.number % len(other) :]

    def _to_tag(self, page: str) -> str:
        tags = [*TAG.finditer(page)]
        if not tags:
            return page
        chosen = tags[int(self.place * len(tags))]
        before, tag, after = page[: chosen.start()], chosen[0], page[chosen.end() :]
        if self.kind == "drop":
            return before + after
        if self.kind == "repeat":
            return before + tag * (self.number % 50) + after
        if self.kind == "move":
            at = self.number % (len(after) + 1)
            return before + after[:at] + tag + after[at:]
        if self.kind == "nest":
            name, closed = NESTED[self.number % len(NESTED)], self.number % 3
            depth = 10_000 if self.number % 50 == 0 else self.number % 50
            return before + f"<{name}>" * depth + tag + after + f"</{name}>" * (depth * closed // 2)
        name, value, quote = NAMES[self.number % 10], VALUES[self.number % 8], ("", "'", '"')[self.number % 3]
        return f"{before}{tag[:-1]} {name}={quote}{value}{quote}>{after}"

    def _to_bytes(self, page: bytes) -> bytes:
        at = int(self.place * len(page))
        before, after = page[:at], page[at:]
        if self.kind == "cut":
            return before
        if self.kind == "flip":
            return before + bytes([after[0] ^ (1 << self.number % 8)]) + after[1:] if after else before
        if self.kind == "remove":
            return before + after[self.number % 300 :]
        return before + bytes(self.number % 300) + after  # zeros


CHANGES = st.builds(Change, st.sampled_from(KINDS), st.floats(0, 0.999), st.integers(0, 9999))
SOUP = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=20)), max_size=40).map("".join)
BROKEN = st.tuples(st.one_of(st.sampled_from(sorted(SEEDS)), SOUP), st.lists(CHANGES, min_size=1, max_size=6))
AGAIN = st.integers(0, 9).map(lambda number: number == 0)
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}


def check(method, page, changes, again):
    """The child answers; `again`, the same of this page and, of one that is whole, its text."""
    step = Extract(method=method)
    for change in changes:
        page = change.apply(page)
    text, reason = step.text(page)
    assert bool(text.strip()) == (reason is None)
    assert reason is None or reason in [f"extract_{why}" for why in WHY]
    text.encode()
    if again:
        assert step.text(page) == (text, reason)
        assert step.text(ARTICLE)[0].count(PROSE) >= 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_page_has_a_text_before_it_is_broken(method, seed):
    text, reason = Extract(method=method).text(SEEDS[seed])
    assert reason is None
    assert PROSE in text


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100, **SETTINGS)
@given(broken=BROKEN, again=AGAIN)
def test_broken_pages(method, broken, again):
    check(method, SEEDS.get(broken[0], broken[0]), broken[1], again)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10_000, **SETTINGS)
@given(broken=BROKEN, again=AGAIN)
def test_ten_thousand_broken_pages(method, broken, again):
    check(method, SEEDS.get(broken[0], broken[0]), broken[1], again)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=500, **SETTINGS)
@given(number=st.integers(0, 9999), changes=st.lists(CHANGES, min_size=1, max_size=6), again=AGAIN)
def test_broken_pages_of_the_web(method, number, changes, again):
    paths = sorted((real("html_gold/scrapinghub") / "html").iterdir())
    page = gzip.decompress(paths[number % len(paths)].read_bytes()).decode("utf-8")
    check(method, page, changes, again)
