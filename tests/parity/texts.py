"""Token ids and texts beside transformers: our tokenizers exported, and a tokenizer.json of each family's shape."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from data.config import TokenizerConfig
from data.document import Document
from data.sources import python_installation
from data.tokenizer import Tokenizer, open_tokenizer_file
from data.tokenizer_hf import write_tokenizer
from data.tokenizer_sentencepiece import train
from tokenizer_lab import FAMILIES

COUNT = 120
Ask = Callable[[Path, list[dict]], list]


def python_texts(count: int = COUNT) -> list[str]:
    """Documents of the Python installation, and the characters that break tokenizers.

    No `<s>` spelled out: transformers reads special tokens in text, ours never does.
    """
    found = [
        item.text
        for partition in python_installation.partitions(Path())[:3]
        for item in python_installation.read(Path(), partition)
        if isinstance(item, Document)
    ]
    hard = ["", " ", "\n\n  \n", "tab\t\r\n", "  lead", "trail  ", "é漢😀\u0301", "a\0b", "x" * 500]
    return found[: count - len(hard)] + hard


def compare_tokenizers(ask: Ask) -> bool:
    """A row a tokenizer: how many of the texts have equal ids, and come back equal there."""
    print("\n| tokenizer | token ids equal | texts equal | holds |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, texts, made = Path(name), python_texts(), {}
        for kind in ("bpe", "unigram"):
            (folder / kind).mkdir()
            path = folder / f"{kind}.model"
            train(python_texts(200), TokenizerConfig(vocab_size=1024, model=kind, train_mb=1.0), path)
            write_tokenizer(folder / kind, open_tokenizer_file(path), 128)
            made[f"SentencePiece {kind}, exported"] = open_tokenizer_file(path), folder / kind
        for family, make in FAMILIES.items():
            (folder / family).mkdir()
            made[f"tokenizer.json as {family}"] = open_tokenizer_file(make(folder / family)), folder / family
        questions = [{"task": "tokens", "folder": str(there), "texts": texts} for _, there in made.values()]
        answers = ask(folder, questions)
        found = [row(name, ours, texts, theirs) for (name, (ours, _)), theirs in zip(made.items(), answers)]
        return all(found)


def row(name: str, tokenizer: Tokenizer, texts: list[str], theirs: dict) -> bool:
    """Prints a row; whether it holds."""
    # Equal pieces in another order have equal unigram scores; the two libraries break such ties differently.
    order = sorted if tokenizer.kind == "unigram" else list
    same_ids = sum(
        order([*tokenizer.begin, *tokenizer.encode(text)]) == order(ids) for text, ids in zip(texts, theirs["ids"])
    )
    same_texts = sum(tokenizer.decode(ids) == there for ids, there in zip(theirs["ids"], theirs["texts"]))
    holds = same_ids == same_texts == len(texts)
    counts = f"{same_ids}/{len(texts)} | {same_texts}/{len(texts)}"
    print(f"| {name} | {counts} | {'yes' if holds else 'NO'} |", flush=True)
    return holds
