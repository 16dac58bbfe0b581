"""The config subtree of the optimiser."""

import math
from dataclasses import dataclass, field
from typing import Literal

from core.config import require


@dataclass(frozen=True)
class GroupConfig:
    """What is different for some parameters: `config.optim.groups.NAME`; what is left out is as for all.

    NAME is one of the groups of `optim/groups.py` or, with a `pattern` over paths, a new one that takes its
    parameters from those.
    """

    pattern: str = ""
    optimizer: str = ""  # of OPTIMIZERS in optim/build.py
    multiplier: float = 1.0  # of the learning rate
    weight_decay: float | None = None  # otherwise that of all for matrices inside layers, 0 for others
    b1: float | None = None
    b2: float | None = None
    epsilon: float | None = None

    def __post_init__(self):
        require(self.multiplier >= 0, f"multiplier={self.multiplier} must be 0 or more")
        _check(self.b1, self.b2, self.epsilon, self.weight_decay)


@dataclass(frozen=True)
class QKClipConfig:
    """Query and key heads scaled back after a step in which a logit was too large: `config.optim.qk_clip`.

    `optim/qk_clip.py` has the formulas.
    """

    threshold: float = 0.0  # of the attention logits; Kimi K2's is 100, 0 leaves all heads as they are
    # What is scaled where several query heads share a key head: the query heads that were too large, or Megatron's
    # rule, all of the group and their key by the smallest factor.
    treatment: Literal["query", "group"] = "query"
    alpha: float = 0.5  # share of the factor that queries take, in logarithms; of "group"

    def __post_init__(self):
        finite = math.isfinite(self.threshold) and self.threshold >= 0
        require(finite, f"qk_clip: threshold={self.threshold} must be 0 or more")
        require(0 <= self.alpha <= 1, f"qk_clip: alpha={self.alpha} must lie in 0..1")


@dataclass(frozen=True)
class AdaptiveConfig:
    """Learning rate and threshold that follow each head's largest logit: `config.optim.adaptive`.

    `optim/adaptive.py` has the formulas.
    """

    rate: Literal["off", "heads", "all"] = "off"  # whose learning rate falls: query and key heads', or everything's
    limit: float = 100.0  # the forecast at which it is `least_rate` of the schedule's
    start: float = 0.5  # share of the limit from which on it falls
    least_rate: float = 0.1
    horizon: int = 20  # steps that the trend is carried forward
    smoothing: float = 0.2  # weight of the newest step in level and trend
    # With optim.qk_clip.threshold: a head is clipped at so many times its level, within least_threshold and that
    # threshold; 0 leaves the threshold fixed.
    slack: float = 0.0
    least_threshold: float = 30.0

    def __post_init__(self):
        for name in ("limit", "least_threshold"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"adaptive: {name}={value} must be positive")
        require(0 <= self.start < 1, f"adaptive: start={self.start} must lie in 0..1, 1 excluded")
        require(0 <= self.least_rate <= 1, f"adaptive: least_rate={self.least_rate} must lie in 0..1")
        require(self.horizon >= 0, f"adaptive: horizon={self.horizon} must be 0 or more")
        require(0 < self.smoothing <= 1, f"adaptive: smoothing={self.smoothing} must lie in 0..1, 0 excluded")
        require(self.slack == 0 or self.slack >= 1, f"adaptive: slack={self.slack} must be 0 or at least 1")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and clipping: `config.optim`. Defaults are SmolLM3's AdamW."""

    optimizer: str = "adamw"  # of matrices inside layers, one of OPTIMIZERS in optim/build.py; all else is AdamW's
    learning_rate: float = 2e-4  # at the plateau
    warmup_steps: int = 2000
    decay_fraction: float = 0.11  # of all steps, at the end, linearly to zero
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of the matrices inside layers; not of embedding and norms
    clip_norm: float = 1.0
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    qk_clip: QKClipConfig = QKClipConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()

    def __post_init__(self):
        own = self.qk_clip, self.adaptive
        require(
            own[1].slack == 0 or own[0].threshold >= own[1].least_threshold,
            f"adaptive: slack={own[1].slack} moves the threshold from least_threshold={own[1].least_threshold} up to "
            f"qk_clip.threshold={own[0].threshold}, which must be at least that",
        )
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(0 <= self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction} must lie in 0..1")
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
        _check(self.b1, self.b2, self.epsilon, self.weight_decay)


def _check(b1: float | None, b2: float | None, epsilon: float | None, weight_decay: float | None) -> None:
    require(all(0 <= b < 1 for b in (b1, b2) if b is not None), "b1 and b2 must lie in 0..1, 1 excluded")
    require(weight_decay is None or weight_decay >= 0, f"weight_decay={weight_decay} must be 0 or more")
    require(epsilon is None or epsilon > 0, f"epsilon={epsilon} must be positive")
