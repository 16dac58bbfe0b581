"""The config subtree of what a step learns from."""

import math
from dataclasses import dataclass

from core.config import require


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: `config.objective`. The default is the cross-entropy of the next token alone."""

    # Times a token's squared log-sum-exp, added to its cross-entropy so that output logits do not drift: PaLM's is
    # 1e-4, OLMo 2's 1e-5.
    z_loss: float = 0.0

    def __post_init__(self):
        require(math.isfinite(self.z_loss) and self.z_loss >= 0, f"z_loss={self.z_loss} must be 0 or more")
