"""The config subtrees of the loop, of the devices it runs on, of where it begins, of a teacher, and of the export."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from core.config import require
from data.config import MOST, Method


@dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to write down: `config.train`."""

    steps: int = 0  # 0 where config.batch.stages say how long
    log_every: int = 10  # steps
    eval_every: int = 0  # steps, and after the last; 0 leaves held-out bits per byte to the eval stage
    checkpoint_every: int = 200  # steps; the last step is always saved
    keep_checkpoints: int = 2  # the newest
    keep_every: int = 0  # steps; checkpoints of multiples of it are kept for good; 0 keeps none but the newest
    # Parts of a batch that are computed one after the other, their gradients added in float32: the same step in less
    # memory.
    microbatches: int = 1
    # Keeps the moments of the optimiser in the memory of the host, and fetches them for the update.
    offload_optimizer: bool = False
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
        require(self.microbatches > 0, f"microbatches={self.microbatches} must be positive")
        require(self.stuck_seconds > 0, f"stuck_seconds={self.stuck_seconds} must be positive")
        require(self.silent_seconds > 0, f"silent_seconds={self.silent_seconds} must be positive")


AXES = ("replica", "fsdp", "tensor", "context", "expert")


@dataclass(frozen=True)
class MeshConfig:
    """How devices divide the work, by the size of each axis of the mesh, whose product they are: `config.mesh`.

    A run may go on under another mesh. `train/sharding.py` says what each axis splits.
    """

    replica: int = 0  # copies of the parameters; 0 is one a slice
    fsdp: int = 0  # parameters, optimiser and rows; 0 is all devices that the other axes leave
    tensor: int = 1  # heads, feed-forward features, vocabulary
    context: int = 1  # tokens of a row
    expert: int = 1  # kept free for mixtures of experts

    def __post_init__(self):
        for name in AXES:
            least = 0 if name in ("replica", "fsdp") else 1
            require(getattr(self, name) >= least, f"{name}={getattr(self, name)} must be {least} or more")
        require(self.expert == 1, f"expert={self.expert} must be 1: no model here has experts yet")


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
    # Keeps the modules of model.multi_token, beside the trunk, which loads as without them.
    multi_token: bool = False


@dataclass(frozen=True)
class TeachConfig:
    """Whose distributions are stored beside the tokens, and what of them: `config.teach`.

    `config.objective.targets` trains with them; docs/objectives.md says more.
    """

    # The workdir of a run that trained or imported, or a Hugging Face folder. Its tokenizer must be this run's.
    teacher: str = ""
    method: Method = "sample"  # random draws, which are unbiased; or top_k, the largest probabilities, which are not
    tokens: int = 50  # drawn, or the largest, of every distribution
    temperature: float = 1.0  # of the teacher and, in training, of the student, whose loss is then times its square
    seed: int = 0  # of the draws
    context: int = 1024  # tokens that the teacher reads at once; longer documents in overlapping windows
    overlap: float = 0.5  # of a window with the one before, which gives its tokens context
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the teacher's parameters and of what it computes
    rows: int = 8  # of so much context, computed at once

    def __post_init__(self):
        require(1 <= self.tokens <= MOST, f"tokens={self.tokens} must lie in 1 to {MOST}")
        above = math.isfinite(self.temperature) and self.temperature > 0
        require(above, f"temperature={self.temperature} must be above 0")
        require(0 <= self.seed < 1 << 31, f"seed={self.seed} must lie in 0 to {(1 << 31) - 1:,}")
        require(self.context > 0 and self.rows > 0, "context and rows must be positive")
        require(0 <= self.overlap < 1, f"overlap={self.overlap} must lie in 0..1, 1 excluded")

    def decides(self) -> dict[str, Any]:
        """What of it decides the targets, for the spec of their stage; the files of the teacher do too."""
        own = dataclasses.asdict(self)
        del own["teacher"], own["rows"]
        return own
