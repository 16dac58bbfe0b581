"""A lossless SentencePiece tokenizer: what is encoded decodes to the same bytes.

Identity normalisation, all whitespace kept, no dummy prefix, whitespace-only pieces for indentation, the newline a
piece of its own, and byte pieces for every character outside the vocabulary.
"""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from core.errors import UserError
from core.files import hash_file
from data.config import TokenizerConfig

UNK, BOS, EOS, NEWLINE = 0, 1, 2, 3
FIRST_LEARNED = NEWLINE + 1 + 256  # after the byte pieces
# SentencePiece writes a space as this character, so a text that holds it must go through its bytes.
SPACE_MARK = "\u2581"
MAX_LINE = 1 << 16  # bytes of a line that is learned from


class Tokenizer:
    """Text to ids and back. `encode` adds no special tokens; `document` adds the first and the last."""

    def __init__(self, path: Path):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is not a SentencePiece model; tokenize again ({error})") from None
        self.path = path
        self.vocab_size = self.processor.vocab_size()
        self._mark = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    @property
    def kind(self) -> str:
        """`unigram` or `bpe`: pieces of a unigram model can be scored by any number, BPE counts merges down."""
        scores = [self.processor.get_score(i) for i in range(FIRST_LEARNED, self.vocab_size)]
        return "bpe" if all(score == -rank for rank, score in enumerate(scores)) else "unigram"

    @property
    def fingerprint(self) -> str:
        """Hash of the model file, which token shards record."""
        return hash_file(self.path)

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        pieces = text.split(SPACE_MARK)
        ids = self.processor.encode(pieces[0])
        for piece in pieces[1:]:
            ids += self._mark + self.processor.encode(piece)
        return ids

    def document(self, text: str) -> list[int]:
        """Ids of a whole document, from its beginning to its end token."""
        return [BOS, *self.encode(text), EOS]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens decode to nothing, broken UTF-8 to U+FFFD."""
        return self.processor.decode([int(i) for i in ids])


def train(texts: Iterable[str], config: TokenizerConfig, path: Path) -> None:
    """Learns a tokenizer from texts and writes it to `path`.

    Raises UserError where the corpus is too small for the vocabulary asked.
    """
    model = io.BytesIO()
    lines = _Lines(texts, config.train_mb)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=config.vocab_size,
            model_type=config.model,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            split_digits=True,
            max_sentence_length=MAX_LINE,
            num_threads=1,  # the vocabulary must not depend on the number of cores
            minloglevel=3,
        )
    except RuntimeError as error:
        if lines.failure is not None:  # SentencePiece turns whatever its iterator raises into a RuntimeError
            raise lines.failure from None
        if (refusal := _does_not_fit(config, str(error))) is None:
            raise
        raise UserError(refusal) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


class _Lines:
    """The lines of the first megabytes; characters that SentencePiece treats specially are left to byte pieces."""

    def __init__(self, texts: Iterable[str], megabytes: float):
        self.texts, self.left = texts, megabytes * 1e6
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self.texts:
                for line in text.replace(SPACE_MARK, " ").replace("\0", " ").split("\n"):
                    if line:
                        yield line
                self.left -= len(text)
                if self.left <= 0:
                    return
        except BaseException as failure:
            self.failure = failure
            raise


def _does_not_fit(config: TokenizerConfig, error: str) -> str | None:
    """SentencePiece's two complaints about the vocabulary in a user's words; None for any other."""
    if "Vocabulary size is smaller than required_chars" in error or "required_chars" in error:
        numbers = re.findall(r"\d+", error.partition("required_chars")[2])
        need = f" (at least {numbers[-1]})" if numbers else ""
        return (
            f"tokenizer.vocab_size={config.vocab_size} is too small for the different characters of the corpus{need}"
            "; raise --config.tokenizer.vocab_size"
        )
    if "Vocabulary size too high" in error or "vocab_size()" in error:
        limit = re.search(r"value <= (\d+)", error)
        most = f" (at most {limit[1]})" if limit else ""
        return (
            f"the corpus is too small for tokenizer.vocab_size={config.vocab_size}{most}; "
            "give more text, or a lower --config.tokenizer.vocab_size"
        )
    return None
