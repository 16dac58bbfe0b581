"""Small tokenizers of the shapes of published families, trained on the standard library's own text.

Shapes: what normalises, splits, merges and decodes, and which special tokens stand where; not the vocabularies.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.tokenizer_hf import tokenizer_json
from data.tokenizer_sentencepiece import SentencePieceTokenizer

TEXT = Path(argparse.__file__).read_text() * 2
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{OTHERS}"
QWEN_SPLIT = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{OTHERS}"
HARD = [
    "", " ", "\n", "  two  spaces  ", "\t\ttabs", "\r\n", "a\0b", "\u2581", "x\u2581 y", "<s> </s> <unk> <0x41>",
    "<|im_start|>user\nhi<|im_end|>", "<|begin_of_text|><|eot_id|>", "<bos><start_of_turn>", "<think></think>",
    "😀 漢字", "\ufeffbom", "e\u0301", "\u00e9", "don't 12345 x=1", "\n\n\n", "x" * 300, "ﬁ ½ \u00a0|\u200d|",
]  # fmt: skip


def byte_level(*, split: str | None = None, normalizer: Any = None, **model: Any) -> tokenizers.Tokenizer:
    """GPT-2's way: every byte is a letter, so nothing is unknown."""
    made = tokenizers.Tokenizer(models.BPE(**model))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        made.pre_tokenizer = bytes_only
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(split), "isolated"), bytes_only]
        )
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXT.splitlines(keepends=True),
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def special(*names: str, control: bool = True) -> list[tokenizers.AddedToken]:
    """Added tokens as published files have them."""
    return [tokenizers.AddedToken(name, special=control, normalized=False) for name in names]


def write(folder: Path, described: str | dict, **settings: Any) -> Path:
    """A folder with `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = described if isinstance(described, str) else json.dumps(described)
    (folder / "tokenizer.json").write_text(text)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def gpt2(folder: Path) -> Path:
    """One special token, which the configuration calls both beginning and end; nothing is put before a text."""
    made = byte_level()
    made.add_special_tokens(special("<|endoftext|>"))
    return write(folder, made.to_str(), bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def smollm2(folder: Path) -> Path:
    """Digits apart; ChatML."""
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), made.pre_tokenizer])
    made.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return write(folder, made.to_str(), **names)


def llama3(folder: Path) -> Path:
    """Whole words without merges, 256 special tokens after the vocabulary, a beginning put before each text."""
    made = byte_level(split=LLAMA3_SPLIT, ignore_merges=True)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    made.add_special_tokens(special(*names, *(f"<|reserved_special_token_{i}|>" for i in range(253))))
    begin = ("<|begin_of_text|>", made.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    write(folder, made.to_str(), bos_token=begin[0], eos_token={"__type": "AddedToken", "content": "<|end_of_text|>"})
    ends = [made.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": begin[1], "eos_token_id": ends}))
    return folder


def qwen3(folder: Path) -> Path:
    """NFC before the bytes; tags of thinking are added tokens that are not special."""
    made = byte_level(split=QWEN_SPLIT, normalizer=normalizers.NFC())
    made.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    made.add_tokens(special("<think>", "</think>", control=False))
    names = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False}
    return write(folder, made.to_str(), **names)


def sentencepiece_model(path: Path, **options: Any) -> Path:
    """A model as others train them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in TEXT.split("\n") if line]),
        model_writer=model,
        minloglevel=3,
        **{"vocab_size": 700, "model_type": "bpe", "byte_fallback": True, "split_digits": True, **options},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path


def llama2_model(folder: Path) -> Path:
    """The raw model of Llama 2: a space before each text, no piece for the newline."""
    whole = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return sentencepiece_model(folder / "tokenizer.model", allow_whitespace_only_pieces=True, **whole)


def llama2(folder: Path) -> Path:
    """The same as a tokenizer.json: Prepend and Replace, byte fallback, Strip."""
    described = tokenizer_json(SentencePieceTokenizer(llama2_model(folder)))
    return write(folder, described, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True)


def gemma2(folder: Path) -> Path:
    """Replace alone, a split at spaces, and added tokens that are vocabulary."""
    path = sentencepiece_model(
        folder / "gemma.model", normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=False, allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", control_symbols=["<start_of_turn>", "<end_of_turn>"],
        user_defined_symbols=["\n", "\n\n"],
    )  # fmt: skip
    described = tokenizer_json(SentencePieceTokenizer(path))
    described["pre_tokenizer"] = {
        "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
    }  # fmt: skip
    return write(folder, described, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


FAMILIES = {f.__name__: f for f in (gpt2, smollm2, llama3, qwen3, llama2, gemma2)}
