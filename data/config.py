"""The config subtrees of the data room."""

import itertools
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from core.config import require
from core.errors import suggest

COLUMNS = ("text", "id", "url", "language", "license", "date")


@dataclass(frozen=True)
class DataConfig:
    """Where documents come from and which of them stay: `config.data`."""

    # A folder or file, here or behind https://, s3:// or gs://, a list of paths that ends in .paths, or tfds:NAME, a
    # dataset that TFDS prepared; empty is the Python installation itself, python:chat are conversations about it.
    path: str = ""
    sources: dict[str, str] = field(default_factory=dict)  # instead of `path`: several, by the name of the source
    # Further documents, each entry as `sources`; kept in order. A run that is under way takes them in with --amend.
    added: tuple[dict[str, str], ...] = ()
    # What Parquet files, JSON lines and datasets of TFDS call `text`, `id`, `url`, `language`, `license`, `date`:
    # {"text": "content"}.
    columns: dict[str, str] = field(default_factory=dict)
    recipe: tuple[dict[str, Any], ...] = ()
    heldout_fraction: float = 0.05  # of documents, by a hash of their id
    shards: int = 4  # of the training documents
    workers: int = 0  # processes; 0 is one a core
    cluster: str = ""  # of Ray in place of processes here: its address, or auto; decides nothing about the result

    def __post_init__(self):
        require(not (self.path and self.sources), "path and sources are both given; name the path among the sources")
        require(all(self.added), "added: an entry names no source")
        for name in itertools.chain(self.sources, *self.added):
            require(re.fullmatch(r"[\w-]+", name) is not None, f"source {name!r} must be letters, digits, _ and -")
        for name in self.columns:
            require(name in COLUMNS, f"columns: {name!r} is no part of a document{suggest(name, COLUMNS)}")
        require(
            0 < self.heldout_fraction < 1,
            f"heldout_fraction={self.heldout_fraction} must lie between 0 and 1",
        )
        require(self.shards > 0, f"shards={self.shards} must be positive")
        require(self.workers >= 0, f"workers={self.workers} must be 0 or more")


@dataclass(frozen=True)
class ClassifierConfig:
    """What the judge of quality learns from: `config.classifier`."""

    # Folders or files of documents by the name of the source: those to be preferred, and those not.
    positive: dict[str, str] = field(default_factory=dict)
    negative: dict[str, str] = field(default_factory=dict)
    scored: dict[str, str] = field(default_factory=dict)  # JSON, JSON lines, Parquet: records with `text` and `score`
    min_score: float = 3.0  # of those that are preferred, as FineWeb-Edu's of 0 to 5
    documents: int = 50_000  # of each of the two kinds at most, by a hash of their id
    max_chars: int = 3000  # of a document, its beginning: FineWeb-Edu's judge reads 512 tokens
    feature_bits: int = 18  # 2**18 features: a megabyte of weights
    regularization: float = 1.0  # of the squared weights, beside the sum of losses
    heldout_fraction: float = 0.1

    def __post_init__(self):
        for name in itertools.chain(self.positive, self.negative, self.scored):
            require(re.fullmatch(r"[\w-]+", name) is not None, f"source {name!r} must be letters, digits, _ and -")
        require(self.documents > 0 and self.max_chars > 0, "documents and max_chars must be positive")
        require(8 <= self.feature_bits <= 22, f"feature_bits={self.feature_bits} must lie in 8 to 22")
        require(self.regularization > 0, f"regularization={self.regularization} must be positive")
        require(0 < self.heldout_fraction < 1, f"heldout_fraction={self.heldout_fraction} must lie between 0 and 1")

    @property
    def asked(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self.positive or self.negative or self.scored)


RESERVED = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, trained on the corpus (SentencePiece) or given: `config.tokenizer`."""

    # A tokenizer that exists: a tokenizer.json, a SentencePiece .model, or a folder that holds one. The three keys of
    # training are then of no account; model.vocab_size must be at least its vocabulary.
    path: str = ""
    # Control tokens beside those of beginning and end, such as <|im_start|>. In training they are added, of a given
    # tokenizer they are required. In documents their names stay ordinary text.
    special: tuple[str, ...] = ()
    # Grows the SentencePiece model at `path` to so many ids with pieces of the training documents (train_mb of them).
    extend_to: int = 0
    vocab_size: int = 4096  # special tokens included
    # BPE trains in a second, packs 2% tighter here, and exports with equal ids. Unigram encodes 3 times as fast;
    # where two splits tie (runs of asterisks), transformers may order the same pieces differently.
    model: Literal["bpe", "unigram"] = "bpe"
    train_mb: float = 8.0  # of training documents, in shard order; more is slower, hardly better
    # A chat template (Jinja) that conversations are written by; empty is the tokenizer's own or, without one, ours.
    template: str = ""

    def __post_init__(self):
        require(self.extend_to >= 0, f"extend_to={self.extend_to} must be 0 or more")
        require(bool(self.path) or not self.extend_to, "extend_to needs path, the tokenizer to extend")
        if self.path:
            return
        for name in self.special:
            # \u2581 is how SentencePiece writes a space; a comma separates its options
            plain = name.isprintable() and not any(letter in name for letter in ' \u2581,"')
            require(bool(name) and plain, f"special: {name!r} must be printable, without spaces, commas and quotes")
            given = name in RESERVED or re.fullmatch("<0x[0-9A-Fa-f]{2}>", name)
            require(not given, f"special: {name!r} is a token of every tokenizer that is trained here")
        require(len(set(self.special)) == len(self.special), "special names a token twice")
        # 256 bytes, 4 control pieces, the newline, and something to learn
        least = 300 + len(self.special)
        require(self.vocab_size >= least, f"vocab_size={self.vocab_size} leaves no room beside 256 byte pieces")
        require(self.train_mb > 0, f"train_mb={self.train_mb} must be positive")

    def decides(self) -> dict[str, Any]:
        """What decides the tokenizer, for the spec of its stage."""
        special = {"special": self.special} if self.special else {}
        if self.path:
            extended = {"extend_to": self.extend_to, "train_mb": self.train_mb} if self.extend_to else {}
            return {"given": True, **special, **extended}  # its files are hashed; where they lie may change
        return {"vocab_size": self.vocab_size, "model": self.model, "train_mb": self.train_mb, **special}


Packing = Literal["split", "best_fit"]
Method = Literal["sample", "top_k"]  # what is stored of a teacher's distributions; see data/targets.py
MOST = 256  # ids of a place: their number and a count fit into a byte


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run: an entry of `config.batch.stages`. What is None is as in `config.batch`."""

    tokens: int  # of the stage, padding included
    rows: int | None = None
    row_length: int | None = None
    packing: Packing | None = None
    mixture: dict[str, float] | None = None


class Stage(NamedTuple):
    """A stage with everything filled in."""

    steps: int
    rows: int
    row_length: int
    packing: Packing
    mixture: dict[str, float]  # as given; empty is all documents as one pool


@dataclass(frozen=True)
class BatchConfig:
    """How tokens become batches: `config.batch`."""

    rows: int = 16  # of the global batch
    row_length: int = 256  # tokens
    # split: documents end to end, cut at every row. best_fit: whole documents together in rows with padding, so
    # that only those longer than a row are cut.
    packing: Packing = "split"
    mixture: dict[str, float] = field(default_factory=dict)  # weight of each source; empty is all as one pool
    max_epochs: dict[str, int] = field(default_factory=dict)  # of a source over the whole run; the others go on
    stages: tuple[StageConfig, ...] = ()  # one after the other; empty is one of train.steps

    def __post_init__(self):
        require(self.rows > 0 and self.row_length > 0, "rows and row_length must be positive")
        for name, epochs in self.max_epochs.items():
            require(epochs > 0, f"max_epochs of {name} is {epochs}, must be positive")
        check_mixture(self.mixture, "mixture")
        for number, stage in enumerate(self.stages):
            at = f"stages[{number}]"
            require(stage.tokens > 0, f"{at}.tokens={stage.tokens} must be positive")
            require(stage.rows is None or stage.rows > 0, f"{at}.rows={stage.rows} must be positive")
            require(
                stage.row_length is None or stage.row_length > 0,
                f"{at}.row_length={stage.row_length} must be positive",
            )
            check_mixture(stage.mixture or {}, f"{at}.mixture")
        mixtures = [self.mixture if stage.mixture is None else stage.mixture for stage in self.stages]
        named = all(mixtures or [self.mixture])
        require(named or not self.max_epochs, "max_epochs needs a mixture that names the sources, in every stage")

    def plan(self, steps: int) -> tuple[Stage, ...]:
        """The stages, by steps; without `stages` one of `steps`."""
        if not self.stages:
            return (Stage(steps, self.rows, self.row_length, self.packing, self.mixture),)
        return tuple(map(self._fill_in, self.stages))

    def _fill_in(self, stage: StageConfig) -> Stage:
        given = {name: getattr(stage, name) for name in ("rows", "row_length", "packing", "mixture")}
        own = {name: getattr(self, name) if value is None else value for name, value in given.items()}
        steps = max(1, round(stage.tokens / (own["rows"] * own["row_length"])))
        return Stage(steps, **own)


def check_mixture(mixture: dict[str, float], name: str) -> None:
    """Refuses weights that cannot be normalised. They need not sum to 1: SmolLM3's third stage sums to 1.00565."""
    for source, weight in mixture.items():
        require(
            math.isfinite(weight) and weight >= 0, f"{name}: the weight of {source} is {weight}, must be 0 or more"
        )
    require(not mixture or any(mixture.values()), f"{name}: all weights are zero")
