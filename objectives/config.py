"""The config subtree of what a step learns from."""

import math
from dataclasses import dataclass
from typing import Literal

from core.config import require
from objectives.schedule import Weight, largest, require_weight


@dataclass(frozen=True)
class MultiTokenConfig:
    """How much tokens beyond the next count: `config.objective.multi_token`; docs/objectives.md says more."""

    # Times the mean of the losses of the modules of `config.model.multi_token`, where there are any. DeepSeek-V3's is
    # 0.3, and 0.1 for the last third; Gloeckle et al. add up, which for M tokens is M - 1.
    weight: Weight = 0.3
    # Of the tokens at offsets 2, 3, ..., which the trunk's own logits are to predict too: no parameters.
    trunk: tuple[Weight, ...] = ()

    def __post_init__(self):
        require_weight("weight", self.weight)
        for number, weight in enumerate(self.trunk):
            require_weight(f"trunk[{number}]", weight)


@dataclass(frozen=True)
class DistillConfig:
    """What a teacher's signals count: `config.objective.distill`; docs/objectives.md says more."""

    # The workdir of another run, whose last checkpoint teaches or, where it did not train, the model it imported.
    teacher: str = ""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the teacher's parameters and computation
    # w in (1 - w) * cross-entropy + w * temperature^2 * divergence; 0 leaves the teacher's logits out.
    weight: Weight = 0.5
    temperature: float = 1.0  # that both models' logits are divided by
    # Of the teacher's distribution q and the student's p. forward_kl is KL(q | p).
    divergence: Literal["forward_kl"] = "forward_kl"

    def __post_init__(self):
        if self.weight != 0:
            require_weight("weight", self.weight)
        require(largest(self.weight) <= 1, f"weight={self.weight} must be at most 1: the rest is the cross-entropy's")
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"temperature={self.temperature} must be positive",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: `config.objective`. The default is the cross-entropy of the next token alone."""

    # Times a token's squared log-sum-exp, added to its cross-entropy so that output logits do not drift: PaLM's is
    # 1e-4, OLMo 2's 1e-5. Of the next token's logits alone.
    z_loss: float = 0.0
    multi_token: MultiTokenConfig = MultiTokenConfig()
    distill: DistillConfig = DistillConfig()

    def __post_init__(self):
        require(math.isfinite(self.z_loss) and self.z_loss >= 0, f"z_loss={self.z_loss} must be 0 or more")
