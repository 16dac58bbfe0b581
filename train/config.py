"""The config subtrees of the loop, of where it begins, and of the export."""

from dataclasses import dataclass
from typing import Literal

from core.config import require


@dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to write down: `config.train`."""

    steps: int = 0  # 0 where config.batch.stages say how long
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0 leaves held-out bits per byte to the eval stage
    checkpoint_every: int = 200  # steps; the last step is always saved
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # steps; checkpoints of multiples of it are kept for good; 0 keeps none but the newest
    # Where several processes train as one, all end when one takes so long to the next step, in which a compile and a
    # save must fit, or is frozen for so long; they name it.
    stuck_seconds: int = 1800
    silent_seconds: int = 60

    def __post_init__(self):
        require(self.steps >= 0, f"steps={self.steps} must be 0 or more")
        require(self.log_every > 0, f"log_every={self.log_every} must be positive")
        require(self.eval_every >= 0, f"eval_every={self.eval_every} must be 0 or more")
        require(self.checkpoint_every > 0, f"checkpoint_every={self.checkpoint_every} must be positive")
        require(self.keep_checkpoints > 0, f"keep_checkpoints={self.keep_checkpoints} must be positive")
        require(self.keep_every >= 0, f"keep_every={self.keep_every} must be 0 or more")
        require(self.stuck_seconds > 0, f"stuck_seconds={self.stuck_seconds} must be positive")
        require(self.silent_seconds > 0, f"silent_seconds={self.silent_seconds} must be positive")


@dataclass(frozen=True)
class StartConfig:
    """Where the parameters before the first step come from: `config.start`."""

    # A Hugging Face folder with config.json and safetensors; empty draws them. What the config leaves open of `model`
    # and `tokenizer` is then as the folder has it.
    folder: str = ""
    # Rows of the embedding for ids that tokenizer.extend_to adds: the mean of the rows of the old pieces that an id
    # replaces, of all rows, or random ones of their standard deviation.
    new_rows: Literal["mean_of_pieces", "mean", "random"] = "mean_of_pieces"
    seed: int = 0  # of random rows


@dataclass(frozen=True)
class ExportConfig:
    """How the model is written for others: `config.export`."""

    dtype: Literal["float32", "bfloat16"] = "float32"
