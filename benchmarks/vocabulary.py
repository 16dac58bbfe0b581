"""Ways to grow a vocabulary, by tokens per byte on held-out text of every language.

    python benchmarks/vocabulary.py --old-text=en.txt --new-text=zh.txt,es.txt,de.txt --heldout=FOLDER \\
        [--sizes=8000,16000] [--megabytes=8] [--model=bpe] [--keep=FOLDER]

Trains a tokenizer as Llama 2's on the old text, grows it by the new text (files take turns, 20,000 characters each)
and prints a table: how many of the new pieces encoding never makes, how many tokens of the old language changed
(`en.txt` of the folder), and tokens per byte of each `<language>.txt`.
"""

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from data import tokenizer_extend as extension
from data.tokenizer_sentencepiece import SentencePieceTokenizer
from evals.vocabulary import measure, read_texts

BLOCK = 20_000  # characters


def train(texts: Iterator[str], size: int, model_type: str, megabytes: float, path: Path) -> Path:
    """A tokenizer with the settings of Llama 2's, from the first megabytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(texts, megabytes), model_writer=model, vocab_size=size, model_type=model_type,
        character_coverage=0.9999, byte_fallback=True, normalization_rule_name="identity", split_digits=True,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=1 << 16,
        num_threads=1, minloglevel=3,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def lines(texts: Iterator[str], megabytes: float) -> Iterator[str]:
    """Lines of the first megabytes."""
    size = 0
    for text in texts:
        yield from (line for line in text.split("\n") if line)
        size += len(text.encode())
        if size >= megabytes * 1e6:
            return


def turns(paths: list[Path]) -> Iterator[str]:
    """A block of each file in turn."""
    texts = [path.read_text() for path in paths]
    blocks = ([text[at : at + BLOCK] for at in range(0, len(text), BLOCK)] for text in texts)
    for row in itertools.zip_longest(*blocks):
        yield from filter(None, row)


def write(old: proto.ModelProto, pieces: list[tuple[str, float]], path: Path) -> Path:
    """The old model with these pieces (text, score) behind its own."""
    model = extension._grown(old, pieces)
    model.trainer_spec.vocab_size = len(model.pieces)
    path.write_bytes(model.SerializeToString())
    return path


def bpe_ways(old: proto.ModelProto, growth: extension.Growth, separate: Path, folder: Path) -> Iterator:
    """The pieces of a separate model, above and below the old ones; then with the characters that `extend` chose."""
    known, room = {entry.piece for entry in old.pieces}, len(growth.pieces)
    lowest = min(entry.score for entry in old.pieces)
    learned = [e.piece for e in extension.read_model(separate).pieces if e.type == extension.NORMAL]
    learned = sorted((piece for piece in learned if piece not in known), key=lambda piece: len(piece) > 1)
    yield "separate model, score 0", write(old, [(piece, 0.0) for piece in learned[:room]], folder / "separate0")
    characters = [piece for piece in growth.pieces if len(piece) == 1]
    alphabet = {*known, *characters}
    joins = [piece for piece in learned if len(piece) > 1 and alphabet.issuperset(piece)]
    ranked = [(piece, lowest - 1 - rank) for rank, piece in enumerate([*characters, *joins])]
    yield "its joins, score 0", write(old, [(piece, 0.0) for piece, _ in ranked[:room]], folder / "joins0")
    yield "its joins, below", write(old, ranked[:room], folder / "below")
    model, _ = extension._reachable(old, ranked, room)
    kept = [(entry.piece, entry.score) for entry in model.pieces[len(old.pieces) :]]
    yield "its joins, below, those out of reach replaced", write(old, kept, folder / "replaced")


def unigram_ways(old: proto.ModelProto, path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The pieces that `extend` chose, with scores moved by a constant."""
    chosen = extension.read_model(path).pieces[len(old.pieces) :]
    for shift in (-4, -2, -1, 1, 2, 4):
        yield f"scores {shift:+d}", write(old, [(e.piece, e.score + shift) for e in chosen], folder / f"shift{shift}")


def ways(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and models, the old one first."""
    sizes, megabytes = options.sizes, options.megabytes
    old_path = train(turns(options.old_text), sizes[0], options.model, megabytes, folder / "old.model")
    yield "before", old_path
    began = time.perf_counter()
    grown_path = folder / "grown.model"
    growth = extension.extend(old_path, turns(options.new_text), sizes[1], grown_path, train_mb=megabytes)
    print(
        f"extend: {time.perf_counter() - began:.0f} s, {growth.learned_bytes:,} bytes, {growth.characters:,} "
        f"characters, {growth.dropped} dropped, {growth.passed} only on the way to longer ones\n"
    )
    yield "extend", grown_path
    old = extension.read_model(old_path)
    if options.model == "bpe":
        # As large as the grown one, so that there are enough pieces which the old one does not have.
        separate = train(turns(options.new_text), sizes[1], "bpe", megabytes, folder / "separate.model")
        yield from bpe_ways(old, growth, separate, folder)
    else:
        yield from unigram_ways(old, grown_path, folder)
    both = itertools.chain.from_iterable(zip(turns(options.old_text), turns(options.new_text)))
    yield "fresh, from both texts", train(both, sizes[1], options.model, 2 * megabytes, folder / "fresh.model")


def unreachable(old: proto.ModelProto, path: Path) -> int:
    """New pieces that are not made of their own text."""
    model = extension.read_model(path)
    pieces = [entry.piece for entry in model.pieces[len(old.pieces) :]]
    split = extension._bare(model).encode(pieces)
    return sum(ids != [len(old.pieces) + index] for index, ids in enumerate(split))


def main(options: argparse.Namespace, folder: Path) -> None:
    """Prints the table, a way at a time."""
    texts = read_texts(options.heldout)
    old = None
    for name, path in ways(options, folder):
        if old is None:
            old = extension.read_model(path)
            print("| way | out of reach | en changed | " + " | ".join(texts) + " |")
            print("|---" * (3 + len(texts)) + "|")
        result = measure([SentencePieceTokenizer(folder / "old.model"), SentencePieceTokenizer(path)], texts)[
            "languages"
        ]
        never = "-" if name == "before" or name.startswith("fresh") else f"{unreachable(old, path):,}"
        cells = " | ".join(f"{own['after']['tokens_per_byte']:.3f}" for own in result.values())
        lost = sum(own["after"]["not_lossless"] for own in result.values())
        changed = f"{result['en']['changed']:.1%}" + (f", {lost} texts lost" if lost else "")
        print(f"| {name} | {never} | {changed} | {cells} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--old-text", "--new-text"):
        parser.add_argument(name, required=True, type=lambda value: [Path(path) for path in value.split(",")])
    parser.add_argument("--heldout", required=True, type=Path)
    parser.add_argument("--sizes", default=[8000, 16000], type=lambda value: [int(size) for size in value.split(",")])
    parser.add_argument("--megabytes", default=8.0, type=float)
    parser.add_argument("--model", default="bpe", choices=["bpe", "unigram"])
    parser.add_argument("--keep", type=Path, help="a folder that keeps the models")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(given, given.keep or Path(temporary))
