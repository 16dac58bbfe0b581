"""Our SentencePiece model as the `tokenizer.json` that Hugging Face tools read."""

import json
from pathlib import Path
from typing import Any

from data.tokenizer import BOS, EOS, FIRST_LEARNED, NEWLINE, SPACE_MARK, UNK, Tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, and the SentencePiece model itself."""
    (folder / "tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer), ensure_ascii=False, indent=1))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The fast tokenizer: spaces become marks, bytes fall back, a document begins with `<s>`."""
    special = {UNK: "<unk>", BOS: "<s>", EOS: "</s>"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, content, special=True) for i, content in special.items()]
        + [_added(NEWLINE, "\n", special=False)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                _special("<s>"),
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _model(tokenizer),
    }


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    processor = tokenizer.processor
    pieces = [processor.id_to_piece(i) for i in range(tokenizer.vocab_size)]
    scores = [processor.get_score(i) for i in range(tokenizer.vocab_size)]
    if tokenizer.kind == "unigram":
        return {"type": "Unigram", "unk_id": UNK, "vocab": list(zip(pieces, scores)), "byte_fallback": True}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": merges(pieces, scores, first=FIRST_LEARNED),
    }


def merges(pieces: list[str], scores: list[float], first: int = 0) -> list[list[str]]:
    """Pairs of pieces that join into a third, best first; SentencePiece keeps only the scores of the results."""
    score_of = dict(zip(pieces, scores))
    found = []
    # Control, newline and byte pieces are not made by merging: "<" and "s>" must not become the first token.
    for piece, score in list(score_of.items())[first:]:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in score_of and right in score_of:
                found.append((-score, score_of[left], score_of[right], left, right))
    return [[left, right] for *_, left, right in sorted(found, key=lambda entry: entry[0])]


def _added(identifier: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": identifier, "content": content, "special": special, **flags}


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}
