"""The config subtree of what a step learns from."""

import math
from dataclasses import dataclass

from core.config import require
from objectives.schedule import Weight, require_weight


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
class ObjectiveConfig:
    """What is minimised: `config.objective`. The default is the cross-entropy of the next token alone."""

    # Times a token's squared log-sum-exp, added to its cross-entropy so that output logits do not drift: PaLM's is
    # 1e-4, OLMo 2's 1e-5. Of the next token's logits alone.
    z_loss: float = 0.0
    multi_token: MultiTokenConfig = MultiTokenConfig()

    def __post_init__(self):
        require(math.isfinite(self.z_loss) and self.z_loss >= 0, f"z_loss={self.z_loss} must be 0 or more")
