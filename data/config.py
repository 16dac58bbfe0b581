"""The config subtrees of the data room."""

from dataclasses import dataclass
from typing import Any, Literal

from core.config import require


@dataclass(frozen=True)
class DataConfig:
    """Where documents come from and which of them stay: `config.data`."""

    path: str = ""  # a folder or file; empty is the Python installation itself
    recipe: tuple[dict[str, Any], ...] = ()
    heldout_fraction: float = 0.05  # of documents, by a hash of their id
    shards: int = 4  # of the training documents
    workers: int = 0  # processes; 0 is one a core

    def __post_init__(self):
        require(
            0 < self.heldout_fraction < 1,
            f"heldout_fraction={self.heldout_fraction} must lie between 0 and 1",
        )
        require(self.shards > 0, f"shards={self.shards} must be positive")
        require(self.workers >= 0, f"workers={self.workers} must be 0 or more")


@dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece tokenizer trained on the corpus: `config.tokenizer`."""

    vocab_size: int = 4096
    # BPE trains in a second, packs 2% tighter here, and exports with equal ids. Unigram encodes 3 times as fast;
    # where two splits tie (runs of asterisks), transformers may order the same pieces differently.
    model: Literal["bpe", "unigram"] = "bpe"
    train_mb: float = 8.0  # of training documents, in shard order; more is slower, hardly better

    def __post_init__(self):
        # 256 bytes, 4 control pieces, the newline, and something to learn
        require(self.vocab_size >= 300, f"vocab_size={self.vocab_size} leaves no room beside 256 byte pieces")
        require(self.train_mb > 0, f"train_mb={self.train_mb} must be positive")


@dataclass(frozen=True)
class BatchConfig:
    """How tokens become batches: `config.batch`."""

    rows: int = 16  # of the global batch
    row_length: int = 256  # tokens

    def __post_init__(self):
        require(self.rows > 0 and self.row_length > 0, "rows and row_length must be positive")
