"""A SentencePiece model grown by pieces of new text; every old id keeps its piece, type and score.

A BPE model is grown by going on where its training stopped: the new text is encoded with the old pieces, and
SentencePiece learns which of those to join next. The new pieces score below all old ones, so that a text is first
split as before and only then joined further: the tokens of any text are the old tokens or runs of them, never more of
them, and a new piece stands for the same old pieces wherever it occurs. A unigram model takes the pieces of a unigram
model of the new text, with the scores they have there. docs/benchmarks/vocabulary.md has the other ways and numbers.
"""

import functools
import io
import itertools
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as proto

from core.errors import UserError
from core.files import atomic_write

SPACE_MARK = "\u2581"  # how SentencePiece writes a space
NORMAL, UNUSED = proto.ModelProto.SentencePiece.NORMAL, proto.ModelProto.SentencePiece.UNUSED
BPE, UNIGRAM = proto.TrainerSpec.BPE, proto.TrainerSpec.UNIGRAM
COVERAGE = 0.9999  # of the characters, in a unigram model of the new text, as in data/tokenizer.py
OFTEN = 2  # times that a piece must be of use in the learning text
SPARE = 1.05  # candidates per piece asked, to replace those that are dropped
MAX_LINE = 1 << 16  # bytes of a line that is learned from
MAX_CHUNK = 1000  # tokens
FIRST_CODE = 0x10000  # code points that stand for ids, one character an id, when SentencePiece learns to join them
MOST = 500_000  # pieces; what SentencePiece learns from must have a code point for each, and for new characters
MAX_MODEL = 1 << 28  # bytes of a model file
GROWTH = "growth.npz"


@dataclass(frozen=True, eq=False)
class Growth:
    """What was added to a vocabulary."""

    old_size: int
    pieces: tuple[str, ...]  # of the new ids old_size, old_size + 1, ...; spaces as U+2581
    old_ids: np.ndarray  # int32: the ids by which the old tokenizer writes each new piece, one piece after the other
    offsets: np.ndarray  # int64 [new pieces + 1]: where each begins in `old_ids`
    characters: int  # of the new pieces, those of one character
    dropped: int  # candidates that encoding never produces, or hardly ever needs
    passed: int  # new pieces that the learning text needs only on the way to longer ones
    learned_bytes: int  # UTF-8, of the text learned from

    @property
    def vocab_size(self) -> int:
        """Old and new pieces together."""
        return self.old_size + len(self.pieces)


def extend(path: Path, texts: Iterable[str], vocab_size: int, out: Path, *, train_mb: float = 8.0) -> Growth:
    """Writes the model of `path`, grown to `vocab_size` by pieces of the first megabytes of `texts`, to `out`.

    Texts of several languages must come mixed, or the first ones use up the megabytes. Raises UserError for a model
    that cannot grow, a vocabulary no larger than before, and texts too small for it.
    """
    old = read_model(path)
    room = vocab_size - len(old.pieces)
    if room <= 0:
        raise UserError(
            f"vocab_size={vocab_size} adds nothing to the {len(old.pieces)} pieces of {path}; ask for more"
        )
    if vocab_size > MOST:
        raise UserError(f"vocab_size={vocab_size} is more than {MOST:,} pieces; ask for less")
    lines, size = _lines(texts, _load(old), train_mb)
    learn = _continue_bpe if old.trainer_spec.model_type == BPE else _learn_unigram
    candidates = learn(old, lines, room)
    model, dropped = _reachable(old, candidates, room)
    added = [entry.piece for entry in model.pieces[len(old.pieces) :]]
    if len(added) < room:
        most = len(model.pieces)
        raise UserError(
            f"{size:,} bytes of text are too few to grow {path} to vocab_size={vocab_size} (at most {most}); "
            "give more text, or ask for less"
        )
    model.trainer_spec.vocab_size = vocab_size
    model.DiscardUnknownFields()  # older versions write samples with their ids, which no longer hold
    with atomic_write(out) as file:
        file.write(model.SerializeToString(deterministic=True))
    return _growth(old, model, lines, dropped, size)


def write_growth(path: Path, growth: Growth) -> None:
    """Which old ids each new one stands for, for whoever makes rows of an embedding from them."""
    with atomic_write(path) as file:
        np.savez(file, old_size=growth.old_size, old_ids=growth.old_ids, offsets=growth.offsets)


def read_growth(path: Path) -> tuple[int, np.ndarray, np.ndarray]:
    """(first new id, old ids, offsets) as written."""
    with np.load(path, allow_pickle=False) as arrays:
        return int(arrays["old_size"]), arrays["old_ids"], arrays["offsets"]


def read_model(path: Path) -> proto.ModelProto:
    """The content of a SentencePiece model file that can grow."""
    try:
        if path.stat().st_size > MAX_MODEL:
            raise UserError(f"{path} has more than {MAX_MODEL >> 20} MiB; that is no SentencePiece model")
        model = proto.ModelProto.FromString(path.read_bytes())
        if not (model.pieces and model.HasField("trainer_spec") and model.HasField("normalizer_spec")):
            raise UserError(f"{path} is not a whole SentencePiece model (no pieces or no settings); name one")
        _load(model)
    except (OSError, DecodeError, RuntimeError) as error:
        raise UserError(f"{path} is not a SentencePiece model ({error}); name one") from None
    if model.trainer_spec.model_type not in (BPE, UNIGRAM):
        kind = proto.TrainerSpec.ModelType.Name(model.trainer_spec.model_type).lower()
        raise UserError(f"{path} is a {kind} model, which has no pieces to grow by; name a BPE or unigram model")
    return model


def _load(model: proto.ModelProto) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def _bare(model: proto.ModelProto) -> sentencepiece.SentencePieceProcessor:
    """Splits text that is normalised already: nothing is replaced, and no space put before it."""
    copy = proto.ModelProto()
    copy.CopyFrom(model)
    copy.normalizer_spec.Clear()
    copy.normalizer_spec.add_dummy_prefix = False
    copy.normalizer_spec.remove_extra_whitespaces = False
    return _load(copy)


def _grown(model: proto.ModelProto, pieces: Iterable[tuple[str, float]]) -> proto.ModelProto:
    """A copy with further normal pieces (text, score) at the end."""
    copy = proto.ModelProto()
    copy.CopyFrom(model)
    for piece, score in pieces:
        copy.pieces.add(piece=piece, score=score, type=NORMAL)
    return copy


def _lines(
    texts: Iterable[str], old: sentencepiece.SentencePieceProcessor, megabytes: float
) -> tuple[list[str], int]:
    """The lines of the first megabytes as the old model normalises them, and their bytes."""
    lines, size, most = [], 0, int(megabytes * 1e6)
    for text in texts:
        for line in text[: most - size].replace(SPACE_MARK, " ").replace("\0", " ").split("\n"):
            if line and (length := len(line.encode())) <= MAX_LINE:
                lines.append(old.normalize(line))
                size += length
                if size >= most:
                    return lines, size
    return lines, size


def _new_characters(old: proto.ModelProto, lines: Sequence[str]) -> dict[str, int]:
    """The characters that no old piece has alone, most frequent first, with the tokens that each would save.

    Without a piece, a character is a token for each of its bytes.
    """
    counts, known = Counter(itertools.chain.from_iterable(lines)), {entry.piece for entry in old.pieces}
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {c: n * max(len(c.encode()) - 1, 1) for c, n in ordered if n >= OFTEN and c not in known}


def _continue_bpe(old: proto.ModelProto, lines: Sequence[str], room: int) -> list[tuple[str, float]]:
    """What saves the most tokens: new characters, and joins of old pieces in the order learned, with their scores.

    A piece saves no more than what it is made of, so none is chosen without its parts.
    """
    characters = _new_characters(old, lines)
    lowest = min(entry.score for entry in old.pieces if entry.type in (NORMAL, UNUSED))
    begun = _grown(old, zip(characters, itertools.repeat(lowest)))
    longest = old.trainer_spec.max_sentencepiece_length
    chunks = Counter(_chunks(begun, _bare(begun).encode(list(lines))))
    known, joins = {entry.piece for entry in begun.pieces}, {}
    for ids in _learn_joins(chunks, int(room * SPARE) + 1):
        text = "".join(begun.pieces[i].piece for i in ids)
        if len(text) <= longest and text not in known:
            joins[ids] = text
    grown = _grown(begun, zip(joins.values(), itertools.count(lowest - 1, -1)))
    saved = [*characters.values(), *_needed(chunks, list(joins), begun, grown)]
    pieces = [*characters, *joins.values()]
    best = sorted(range(len(pieces)), key=lambda index: -saved[index])[: int(room * SPARE) + 1]
    best = [index for index in best if saved[index] >= OFTEN]
    kept = sorted(best[:room]) + best[room:]  # characters, joins as learned, and behind them what may take a place
    return list(zip((pieces[index] for index in kept), itertools.count(lowest - 1, -1)))


def _chunks(model: proto.ModelProto, encoded: Iterable[list[int]]) -> Iterator[tuple[int, ...]]:
    """Runs of ids that may be joined: within a word, of one script, of normal pieces only."""
    spec = model.trainer_spec
    texts = [entry.piece for entry in model.pieces]
    alone = [entry.type != NORMAL or (spec.split_digits and entry.piece[-1:].isdecimal()) for entry in model.pieces]
    first, last = [_script(text[:1]) for text in texts], [_script(text[-1:]) for text in texts]
    blank = [spec.allow_whitespace_only_pieces and not text.strip(SPACE_MARK) for text in texts]
    begins = [text.startswith(SPACE_MARK) for text in texts]
    if spec.treat_whitespace_as_suffix:
        begins = [False] * len(texts)
        last = ["end" if text.endswith(SPACE_MARK) else script for text, script in zip(texts, last)]
    for ids in encoded:
        start = 0
        for at in range(1, len(ids) + 1):
            if at < len(ids) and at - start < MAX_CHUNK:
                a, b = ids[at - 1], ids[at]
                joins = (blank[a] and blank[b]) if begins[b] else (last[a] == first[b] or "" in (last[a], first[b]))
                if joins and not alone[a] and not alone[b]:
                    continue
            if at - start > 1:
                yield tuple(ids[start:at])
            start = at


@functools.cache
def _script(character: str) -> str:
    """The script of a character, as SentencePiece keeps them apart; none for spaces and marks, which join any."""
    category = unicodedata.category(character)[0] if character else "M"
    if character == SPACE_MARK or category == "M":
        return ""
    if category != "L":
        return "number" if category == "N" else "sign"
    name = unicodedata.name(character, "?").split()[0]
    return "HAN" if name in ("CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC") else name


def _learn_joins(chunks: Counter[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """The runs of ids that BPE joins, in order: SentencePiece's own trainer over one character an id."""
    if not chunks or count <= 0:
        return []
    model = io.BytesIO()
    ordered = sorted(chunks.items(), key=lambda item: (-item[1], item[0]))
    rows = ("".join(chr(FIRST_CODE + i) for i in ids) + f"\t{times}" for ids, times in ordered)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=rows,
        model_writer=model,
        input_format="tsv",  # a chunk and how often it occurs
        model_type="bpe",
        vocab_size=1 + len({i for ids in chunks for i in ids}) + count,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_by_unicode_script=False,  # the chunks are what may be joined
        split_by_whitespace=False,
        split_by_number=False,
        max_sentence_length=MAX_LINE,
        num_threads=1,  # the vocabulary must not depend on the number of cores
        minloglevel=3,
    )
    pieces = proto.ModelProto.FromString(model.getvalue()).pieces
    return [tuple(ord(c) - FIRST_CODE for c in entry.piece) for entry in pieces[1:] if len(entry.piece) > 1]


def _needed(
    chunks: Counter[tuple[int, ...]],
    joined: Sequence[tuple[int, ...]],
    begun: proto.ModelProto,
    grown: proto.ModelProto,
) -> list[int]:
    """How often encoding the chunks makes each run, on the way to longer ones too.

    The trainer goes on when nothing is left to join, with runs that never come about.
    """
    texts = ["".join(begun.pieces[i].piece for i in ids) for ids in chunks]
    uses: Counter[int] = Counter()
    for ids, count in zip(_bare(grown).encode(texts), chunks.values()):
        for i in ids:
            uses[i - len(begun.pieces)] += count
    rank = {ids: index for index, ids in enumerate(joined)}
    for ids, index in reversed(rank.items()):
        for part in _parts(ids, rank):
            if part in rank:
                uses[rank[part]] += uses[index]
    return [uses[index] for index in range(len(joined))]


def _parts(ids: tuple[int, ...], rank: dict[tuple[int, ...], int]) -> list[tuple[int, ...]]:
    """The two runs that are joined last to make this one; more where it never comes about."""
    parts = [(i,) for i in ids]
    while len(parts) > 2:
        pairs = [rank.get(a + b, len(rank)) for a, b in itertools.pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= rank[ids]:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _learn_unigram(old: proto.ModelProto, lines: Sequence[str], room: int) -> list[tuple[str, float]]:
    """The pieces of a unigram model of the lines that are not there yet, those that save the most first."""
    if not lines:
        return []
    known, spec = {entry.piece for entry in old.pieces}, old.trainer_spec
    asked = int(room * SPARE) + len(set(itertools.chain.from_iterable(lines))) + 1
    while True:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line.replace(SPACE_MARK, " ") for line in lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=asked,
            hard_vocab_limit=False,
            bos_id=-1,
            eos_id=-1,
            character_coverage=COVERAGE,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=spec.allow_whitespace_only_pieces,
            split_digits=spec.split_digits,
            max_sentencepiece_length=spec.max_sentencepiece_length,
            max_sentence_length=MAX_LINE,
            num_threads=1,
            minloglevel=3,
        )
        learned = [e for e in proto.ModelProto.FromString(model.getvalue()).pieces if e.type == NORMAL]
        new = [(entry.piece, entry.score) for entry in learned if entry.piece not in known]
        if len(new) >= room * SPARE or len(learned) < asked - 1:
            return sorted(new, key=lambda item: (-item[1] - _bytes_saved(item[0]), item[0]))
        asked += int(room * SPARE) - len(new) + room // 10 + 1


def _bytes_saved(piece: str) -> float:
    """What a character's bytes add to its log probability, when it comes to the tokens that a piece saves."""
    return math.log(max(len(piece.encode()) - 1, 1)) if len(piece) == 1 else 0.0


def _reachable(old: proto.ModelProto, candidates: list, room: int) -> tuple[proto.ModelProto, int]:
    """The old model with the first candidates that encoding makes of their own text, and how many it does not."""
    left, dropped = list(candidates), 0
    while True:
        model = _grown(old, left[:room])
        texts = [piece for piece, _ in left[:room]]
        split = _bare(model).encode(texts)
        never = {text for index, (text, ids) in enumerate(zip(texts, split)) if ids != [len(old.pieces) + index]}
        if not never:
            return model, dropped
        left, dropped = [item for item in left if item[0] not in never], dropped + len(never)


def _growth(old: proto.ModelProto, model: proto.ModelProto, lines: list[str], dropped: int, size: int) -> Growth:
    """What the new model says of itself and of the text that it learned from."""
    pieces = tuple(entry.piece for entry in model.pieces[len(old.pieces) :])
    split = _bare(old).encode(list(pieces))
    used = set(itertools.chain.from_iterable(_bare(model).encode(lines)))
    return Growth(
        old_size=len(old.pieces),
        pieces=pieces,
        old_ids=np.array(list(itertools.chain.from_iterable(split)), np.int32),
        offsets=np.cumsum([0, *map(len, split)], dtype=np.int64),
        characters=sum(len(piece) == 1 for piece in pieces),
        dropped=dropped,
        passed=len(pieces) - len(used & set(range(len(old.pieces), len(model.pieces)))),
        learned_bytes=size,
    )
