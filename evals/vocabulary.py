"""Two tokenizers on the same texts, most of all one before and after it grew: lengths, speed, coverage, losses.

Losses per token cannot be compared across vocabularies; bits per byte can, and are shown where they were measured.
"""

import codecs
import functools
import hashlib
import itertools
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.files import Stage, fingerprint, read_json, write_json
from core.page import Html, Page, code, printable, strong, tag
from core.progress import say
from data.tokenizer_sentencepiece import SentencePieceTokenizer
from evals import draw
from evals.figures_vocabulary import before_after

VERSION = 1
SIDES = ("before", "after")
TEXT = 2000  # characters of the texts that a file is cut into, at line ends
MEGABYTES = 4.0  # of a language
SPEED_BYTES, TURNS = 200_000, 5  # of a language; the sides take turns, and each one's best time counts
SHOWN = 160  # characters of a language that the page shows split
EXAMPLES = 12  # pieces of a script that the page names
# Blocks that hold pictographs: symbols and dingbats, then those of plane 1 in the order of their code points.
EMOJI = ((0x2600, 0x27BF), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF),
         (0x1FA70, 0x1FAFF))  # fmt: skip
COLUMNS = {  # of the tables: what each is called
    "tokens_per_byte": "tokens per byte",
    "tokens_per_character": "tokens per character",
    "byte_fraction": "byte pieces, of tokens",
    "encode_mb_s": "encode, MB/s",
    "decode_mb_s": "decode, MB/s",
    "not_lossless": "texts not lossless",
}


def compare_tokenizers(
    before: Path,
    after: Path,
    texts: Mapping[str, Iterable[str]],
    folder: Path,
    *,
    bits_per_byte: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Measures both on the texts of every language; writes `vocabulary.html`, its PNGs and `vocabulary.json`.

    `bits_per_byte` are held-out bits per byte by language, of models trained with each: {"de": {"before": 1.1, ...}}.
    """
    tokenizers = [SentencePieceTokenizer(path) for path in (before, after)]
    texts = {language: list(own) for language, own in texts.items()}
    if empty := [language for language, own in texts.items() if not any(own)] or (not texts and ["any language"]):
        raise UserError(f"there is no text of {empty[0]} to compare tokenizers on; give some")
    hashes = {name: hashlib.blake2b("\0".join(own).encode()).hexdigest() for name, own in texts.items()}
    made_from = {"tokenizers": [t.fingerprint for t in tokenizers], "texts": hashes, "bits_per_byte": bits_per_byte}
    stage = Stage(folder, {"version": VERSION, "made_from": fingerprint(made_from)}, stale="replace")
    path = folder / "vocabulary.json"
    if stage.finished:
        say(f"vocabulary: {folder} is up to date")
        return read_json(path)
    result = measure(tokenizers, texts)
    result["bits_per_byte"] = dict(bits_per_byte or {})
    write_json(path, result)
    files = _page(result, tokenizers, texts).write(folder / "vocabulary.html")
    stage.finish([path, *files], {side: result["mean"][side] for side in SIDES})
    say(f"vocabulary: {files[0]}")
    return result


def read_texts(path: Path, megabytes: float = MEGABYTES) -> dict[str, list[str]]:
    """The first megabytes of every `<language>.txt` of a folder, or of one file, cut into texts at line ends."""
    paths = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not paths:
        raise UserError(f"{path} has no .txt file; put one there for each language, such as de.txt")
    return {own.stem: _read(own, int(megabytes * 1e6)) for own in paths}


def _read(path: Path, most: int) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(most)
            whole = not file.read(1)
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)  # the cut may halve a character
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a .txt file or a folder of them") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start:,}); convert it") from None
    texts, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= TEXT:
            texts.append("".join(lines))
            lines, size = [], 0
    return texts + ["".join(lines)] * bool(lines)


def measure(tokenizers: list[SentencePieceTokenizer], texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """All numbers: by language, their means over the languages, and what emoji become."""
    sides = dict(zip(SIDES, tokenizers))
    tables = {side: _Pieces(tokenizer) for side, tokenizer in sides.items()}
    languages = {}
    for language, own in texts.items():
        size, characters = sum(len(text.encode()) for text in own), sum(map(len, own))
        split = {side: [np.array(tokenizer.encode(text), int) for text in own] for side, tokenizer in sides.items()}
        speed = _speed(sides, own)
        found: dict[str, Any] = {"texts": len(own), "bytes": size, "characters": characters}
        for side, tokenizer in sides.items():
            tokens = sum(map(len, split[side]))
            found[side] = {
                "tokens": tokens,
                "tokens_per_byte": tokens / size,
                "tokens_per_character": tokens / characters,
                "byte_fraction": sum(int(tables[side].is_byte[ids].sum()) for ids in split[side]) / max(tokens, 1),
                "not_lossless": sum(tokenizer.decode(ids) != text for ids, text in zip(split[side], own)),
                **speed[side],
            }
        same = sum(tables["before"].same(old, tables["after"], new) for old, new in zip(*split.values()))
        found["changed"] = 1 - same / max(found["before"]["tokens"], 1)
        languages[language] = found
    return {
        "vocab_size": {side: tokenizer.vocab_size for side, tokenizer in sides.items()},
        "languages": languages,
        "mean": {side: _mean([own[side] for own in languages.values()]) for side in SIDES},
        "emoji": {side: _emoji(tokenizer, tables[side]) for side, tokenizer in sides.items()},
        "new_pieces": _new_pieces(*tables.values()),
    }


class _Pieces:
    """Of every id: its text, whether it is a byte, and the bytes that it stands for."""

    def __init__(self, tokenizer: SentencePieceTokenizer):
        processor, ids = tokenizer.processor, range(tokenizer.vocab_size)
        self.is_byte = np.array([processor.is_byte(i) for i in ids])
        special = [processor.is_control(i) or processor.is_unknown(i) for i in ids]
        self.texts = [processor.id_to_piece(i).replace("\u2581", " ") for i in ids]
        sizes = [0 if hidden else len(text.encode()) for text, hidden in zip(self.texts, special)]
        self.sizes = np.where(self.is_byte, 1, sizes)

    def spans(self, ids: np.ndarray) -> np.ndarray:
        """Begin and end of every token in the bytes of the text, as one number."""
        ends = np.cumsum(self.sizes[ids])
        return (ends - self.sizes[ids] << 32) + ends

    def same(self, ids: np.ndarray, other: "_Pieces", others: np.ndarray) -> int:
        """How many tokens stand for the same bytes in both."""
        return len(np.intersect1d(self.spans(ids), other.spans(others)))


def _speed(sides: Mapping[str, SentencePieceTokenizer], texts: list[str]) -> dict[str, dict[str, float]]:
    """Megabytes of text a second of processor time, so that other work on the machine matters less."""
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    texts = [text for text, size in zip(texts, sizes) if size <= SPEED_BYTES] or [texts[0][:SPEED_BYTES]]
    size = sum(len(text.encode()) for text in texts)
    split = {side: [tokenizer.encode(text) for text in texts] for side, tokenizer in sides.items()}
    best: dict[tuple[str, str], float] = {}
    for _ in range(TURNS):
        for side, tokenizer in sides.items():
            for what, run, given in (("encode", tokenizer.encode, texts), ("decode", tokenizer.decode, split[side])):
                began = time.process_time()
                for item in given:
                    run(item)
                took = max(time.process_time() - began, 1e-9)
                best[side, what] = min(took, best.get((side, what), took))
    return {side: {f"{what}_mb_s": size / 1e6 / best[side, what] for what in ("encode", "decode")} for side in sides}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Every language counts the same; texts that are not lossless are added up."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS}
    return {**means, "not_lossless": sum(row["not_lossless"] for row in rows)}


def emoji() -> list[str]:
    """The single characters of the emoji blocks that this Python's Unicode knows."""
    codes = itertools.chain.from_iterable(range(first, last + 1) for first, last in EMOJI)
    return [chr(number) for number in codes if unicodedata.category(chr(number)) == "So"]


def _emoji(tokenizer: SentencePieceTokenizer, pieces: _Pieces) -> dict[str, int]:
    """How many are one piece, and how many go through no byte piece. A space that is put before is not counted."""
    split = {character: [i for i in tokenizer.encode(character) if pieces.texts[i] != " "] for character in emoji()}
    one = sum(len(ids) == 1 and pieces.texts[ids[0]].strip() == character for character, ids in split.items())
    return {"all": len(split), "one_piece": one, "no_bytes": sum(not pieces.is_byte[i].any() for i in split.values())}


def _new_pieces(before: _Pieces, after: _Pieces) -> dict[str, dict[str, Any]]:
    """Pieces that only the second has, by script: how many, and some of them, evenly spaced."""
    known = set(before.texts)
    found: dict[str, list[str]] = {}
    for text in after.texts:
        if text not in known:
            found.setdefault(_script(text), []).append(text)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return {k: {"pieces": len(own), "examples": own[:: -(-len(own) // EXAMPLES)]} for k, own in ordered}


def _script(text: str) -> str:
    """The script of the first letter, by its name in Unicode."""
    letters = [character for character in text if character.isalpha()]
    name = unicodedata.name(letters[0], "unnamed").split()[0] if letters else "no letters"
    return name if name == "CJK" else name.lower()


def print_table(result: Mapping[str, Any]) -> None:
    """The numbers of every language on standard output, separated by tabs."""
    head = [f"{name}_{side}" for name in COLUMNS for side in SIDES]
    bits = result["bits_per_byte"]
    rows = [["language", "bytes", "changed", *head, *(f"bits_per_byte_{side}" for side in SIDES if bits)]]
    for language, own in result["languages"].items():
        cells = [own[side][name] for name in COLUMNS for side in SIDES]
        cells += [bits[language][side] for side in SIDES] if bits else []
        numbers = [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in (own["changed"], *cells)]
        rows.append([printable(language), str(own["bytes"]), *numbers])
    sys.stdout.write("".join("\t".join(row) + "\n" for row in rows))


def _page(
    result: Mapping[str, Any], tokenizers: list[SentencePieceTokenizer], texts: Mapping[str, list[str]]
) -> draw.Sheet:
    old, new = (f"{result['vocab_size'][side]:,}" for side in SIDES)
    fewer = 1 - result["mean"]["after"]["tokens_per_byte"] / result["mean"]["before"]["tokens_per_byte"]
    lead = [
        f"A vocabulary of {old} pieces beside one of {new}, on the same texts of {len(texts)} "
        f"language{'s' * (len(texts) > 1)}: on average ",
        strong(f"{abs(fewer):.1%} {'fewer' if fewer >= 0 else 'more'} tokens"),
        " for the same text, every language counting the same.",
    ]
    sheet = draw.Sheet(Page(f"Vocabulary: {old} to {new}", *lead, footer=f"Made from {tokenizers[1].path.resolve()}"))
    _notices(sheet.page, result)
    sheet.page.tiles(_tiles(result))
    _lengths(sheet, result)
    _coverage(sheet, result)
    _speeds(sheet, result)
    _bits(sheet, result)
    _pieces(sheet, result)
    _splits(sheet.page, tokenizers, texts)
    return sheet


def _notices(page: Page, result: Mapping[str, Any]) -> None:
    for side in SIDES:
        if lost := result["mean"][side]["not_lossless"]:
            total = sum(own["texts"] for own in result["languages"].values())
            page.notice(strong(f"Not lossless {side}: "), f"{lost:,} of {total:,} texts do not decode to themselves.")
    longer = [
        language
        for language, own in result["languages"].items()
        if own["after"]["tokens"] > 1.001 * own["before"]["tokens"]
    ]
    if longer:
        page.notice(strong("More tokens than before: "), ", ".join(longer), ".")


def _tiles(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after = (result["mean"][side] for side in SIDES)
    ratio = {name: own["after"]["tokens"] / own["before"]["tokens"] for name, own in result["languages"].items()}
    best, emojis = min(ratio, key=ratio.get), result["emoji"]
    return [
        ("Pieces", f"{result['vocab_size']['after']:,}", f"{result['vocab_size']['before']:,} before"),
        ("Tokens per byte", f"{after['tokens_per_byte']:.3f}", f"{before['tokens_per_byte']:.3f} before"),
        ("Most gained", f"{1 - ratio[best]:.0%}", f"fewer tokens in {best}"),
        ("Byte pieces", f"{after['byte_fraction']:.1%}", f"of tokens; {before['byte_fraction']:.1%} before"),
        ("Emoji in one piece", f"{emojis['after']['one_piece']:,}", f"{emojis['before']['one_piece']:,} before"),
        ("Encode", f"{after['encode_mb_s']:.1f} MB/s", f"{before['encode_mb_s']:.1f} before"),
    ]


def _pairs(result: Mapping[str, Any], name: str, scale: float = 1) -> list[tuple[str, float, float]]:
    return [(k, *(scale * own[side][name] for side in SIDES)) for k, own in result["languages"].items()]


def _lengths(sheet: draw.Sheet, result: Mapping[str, Any]) -> None:
    sheet.page.section("Tokens per byte")
    rows = _pairs(result, "tokens_per_byte")
    make = functools.partial(_drawn, "Tokens per byte of UTF-8", rows, "tokens per byte", _three)
    sheet.figure("tokens-per-byte", make, "Tokens per byte of every language, before and after")
    head = ["language", "bytes", "tokens before", "tokens after", "ratio", "per character before", "after",
            "changed, %"]  # fmt: skip
    table = []
    for language, own in result["languages"].items():
        old, new = own["before"], own["after"]
        lengths = (old["tokens_per_character"], new["tokens_per_character"])
        ratio = new["tokens"] / old["tokens"]
        table.append((language, own["bytes"], old["tokens"], new["tokens"], ratio, *lengths, 100 * own["changed"]))
    sheet.page.table(head, table)
    sheet.page.text("Changed: tokens of before that stand for other bytes than any token of after.")


def _coverage(sheet: draw.Sheet, result: Mapping[str, Any]) -> None:
    sheet.page.section(
        "Bytes and emoji",
        "A character that no piece has is written as the bytes of its UTF-8, a token each: lossless, but long.",
    )
    rows = _pairs(result, "byte_fraction", 100)
    make = functools.partial(_drawn, "Byte pieces among the tokens", rows, "% of tokens", _percent)
    sheet.figure("byte-pieces", make, "Share of byte pieces in every language, before and after")
    table = [(side, own["all"], own["one_piece"], own["no_bytes"]) for side, own in result["emoji"].items()]
    sheet.page.table(["", "emoji", "in one piece", "without byte pieces"], table)
    sheet.page.text(
        "Emoji are the single pictographs of the emoji blocks of Unicode, as this Python knows them: flags, skin "
        "tones and joined ones are made of several characters and not counted."
    )
    table = [(name, own["texts"], *(own[side]["not_lossless"] for side in SIDES)) for name, own in
             result["languages"].items()]  # fmt: skip
    sheet.page.heading("Round trip")
    sheet.page.table(["language", "texts", "not lossless before", "not lossless after"], table)


def _speeds(sheet: draw.Sheet, result: Mapping[str, Any]) -> None:
    sheet.page.section(
        "Speed", f"Megabytes of text a second of processor time, best of {TURNS} turns, the two taking turns."
    )
    drawn = {}
    for what in ("encode", "decode"):
        rows = _pairs(result, f"{what}_mb_s")
        figure = _drawn(what.capitalize(), rows, "MB/s", lambda value, _: f"{value:.1f}", draw.SMALL)
        drawn[what] = figure, f"{what.capitalize()} speed in every language, before and after"
    sheet.small(drawn)


def _bits(sheet: draw.Sheet, result: Mapping[str, Any]) -> None:
    sheet.page.section("Bits per byte")
    if not result["bits_per_byte"]:
        sheet.page.text(
            "Not measured: it takes a model trained with each tokenizer. Losses per token do not compare, since a "
            "token of the larger vocabulary says more."
        )
        return
    rows = [(language, *(own[side] for side in SIDES)) for language, own in result["bits_per_byte"].items()]
    make = functools.partial(_drawn, "Held-out bits per byte", rows, "bits per byte", _three)
    sheet.figure("bits-per-byte", make, "Bits per byte of every language, before and after")
    sheet.page.table(["language", "before", "after"], rows)


def _pieces(sheet: draw.Sheet, result: Mapping[str, Any]) -> None:
    sheet.page.section("New pieces")
    if not result["new_pieces"]:
        sheet.page.text("None.")
        return
    rows = []
    for script, own in result["new_pieces"].items():
        listed = itertools.chain.from_iterable((" ", code(text.replace(" ", "␣"))) for text in own["examples"])
        rows.append((script, own["pieces"], Html("".join(listed))))
    sheet.page.table(["script", "pieces", "some of them"], rows)


def _splits(page: Page, tokenizers: list[SentencePieceTokenizer], texts: Mapping[str, list[str]]) -> None:
    """The beginning of each language as both split it."""
    page.section("Texts, split", "Every second token is shaded; a byte piece shows as its number.")
    for language, own in texts.items():
        with page.details(language, opened=len(texts) <= 3):
            for side, tokenizer in zip(SIDES, tokenizers):
                ids = tokenizer.encode(own[0][:SHOWN])
                page.text(f"{side}, {len(ids)} tokens")
                shown = (tokenizer.processor.id_to_piece(i).replace("\u2581", " ") for i in ids)
                page.pre(*(tag("span", text, class_="made" if at % 2 else "given") for at, text in enumerate(shown)))


def _drawn(title: str, rows: list, unit: str, formatter: Any, width: int) -> Any:
    return before_after(title, rows, unit, formatter, width)


def _three(value: float, _: Any) -> str:
    return f"{value:.3f}"


def _percent(value: float, _: Any) -> str:
    return f"{value:.1f}%"
