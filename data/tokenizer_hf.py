"""A tokenizer as Hugging Face tools read it: its own files, or the `tokenizer.json` of a SentencePiece model."""

import json
from pathlib import Path
from typing import Any

from core.progress import say
from data.tokenizer import JSON, MODEL, Tokenizer
from data.tokenizer_sentencepiece import SPACE_MARK, SentencePieceTokenizer

CONFIG = "tokenizer_config.json"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Copies a tokenizer.json and what belongs to it unchanged; makes one of a SentencePiece model."""
    for path in tokenizer.files:
        (folder / (MODEL if path == tokenizer.path and path.suffix != ".json" else path.name)).write_bytes(
            path.read_bytes()
        )
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return
    if tokenizer.model.normalizer_spec.precompiled_charsmap:
        say(
            f"export: {tokenizer.path} rewrites text before it encodes it, so that only {MODEL} is written, no {JSON}"
        )
        return
    (folder / JSON).write_text(json.dumps(tokenizer_json(tokenizer), ensure_ascii=False, indent=1))
    if not (folder / CONFIG).exists():
        (folder / CONFIG).write_text(json.dumps(_settings(tokenizer, max_length), indent=2) + "\n")


def _settings(tokenizer: SentencePieceTokenizer, max_length: int) -> dict[str, Any]:
    named = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.eos}
    named["unk"] = tokenizer.processor.unk_id()
    names = {f"{name}_token": tokenizer.processor.id_to_piece(i) for name, i in named.items() if i is not None}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }


def tokenizer_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The fast tokenizer: spaces become marks, bytes fall back, a document begins with `<s>`."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    prefix = [] if tokenizer.plain else [{"type": "Prepend", "prepend": SPACE_MARK}]
    strip = [] if tokenizer.plain else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    text, others = [{"Sequence": {"id": "A", "type_id": 0}}], [{"Sequence": {"id": "B", "type_id": 1}}]
    begin = {tokenizer.processor.id_to_piece(i): i for i in tokenizer.begin}
    first = [{"SpecialToken": {"id": name, "type_id": 0}} for name in begin]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokenizer),
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]} if prefix else spaces,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*first, *text],
            "pair": [*first, *text, *others],
            "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in begin.items()},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": _model(tokenizer),
    }


def _added_tokens(tokenizer: SentencePieceTokenizer) -> list[dict[str, Any]]:
    """Control and unknown pieces are special; pieces that a user defined, such as the newline, never join others."""
    found = []
    for i, piece in enumerate(tokenizer.model.pieces):
        special = piece.type in (piece.CONTROL, piece.UNKNOWN)
        if special or piece.type == piece.USER_DEFINED:
            found.append({"id": i, "content": piece.piece, "special": special, **FLAGS})
    return found


def _model(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    pieces, unknown = tokenizer.model.pieces, tokenizer.processor.unk_id()
    if tokenizer.kind == "unigram":
        vocabulary = [(piece.piece, piece.score) for piece in pieces]
        bytes_too = tokenizer.model.trainer_spec.byte_fallback
        return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": bytes_too}
    learned = [piece for piece in pieces if piece.type == piece.NORMAL]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unknown].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": tokenizer.model.trainer_spec.byte_fallback,
        "vocab": {piece.piece: i for i, piece in enumerate(pieces)},
        "merges": merges([piece.piece for piece in learned], [piece.score for piece in learned]),
    }


def merges(pieces: list[str], scores: list[float]) -> list[list[str]]:
    """Pairs of pieces that join into a third, best first; SentencePiece keeps only the scores of the results.

    Only pieces that were learned: "<" and "s>" must not become the first token.
    """
    score_of = dict(zip(pieces, scores))
    found = []
    for piece, score in score_of.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in score_of and right in score_of:
                found.append((-score, left, right))
    return [[left, right] for _, left, right in sorted(found, key=lambda entry: entry[0])]
