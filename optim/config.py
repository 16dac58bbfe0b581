"""The config subtree of the optimiser."""

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
class MuonConfig:
    """Muon: `config.optim.muon`, for groups whose optimizer is muon."""

    momentum: float = 0.95
    nesterov: bool = True
    # Of Newton-Schulz; 10 fewer steps in the GPT speedrun than with `standard`.
    coefficients: Literal["standard", "per_step", "polar_express", "convergent"] = "polar_express"
    steps: int = 0  # 0 is as many as the coefficients are made of
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of Newton-Schulz and of what travels to it and back
    scaling: Literal["spectral", "rms"] = "rms"  # sqrt(max(1, out / in)), or 0.2 sqrt(max(in, out)): AdamW rates
    split: Literal["projection", "head"] = "projection"  # of attention: a matrix a projection, or a head
    normuon_b2: float = 0.0  # of the mean square of each neuron's update, by which it is divided; 0 is without
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"  # as it is kept

    def __post_init__(self):
        require(0 <= self.momentum < 1, f"momentum={self.momentum} must lie in 0..1, 1 excluded")
        require(0 <= self.normuon_b2 < 1, f"normuon_b2={self.normuon_b2} must lie in 0..1, 1 excluded")
        require(self.steps >= 0, f"steps={self.steps} must be 0 or more")


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
    cautious_decay: bool = False  # decays only where the update shrinks the weight, too
    clip_norm: float = 1.0
    muon: MuonConfig = field(default_factory=MuonConfig)
    groups: dict[str, GroupConfig] = field(default_factory=dict)

    def __post_init__(self):
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(0 <= self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction} must lie in 0..1")
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
        _check(self.b1, self.b2, self.epsilon, self.weight_decay)


def _check(b1: float | None, b2: float | None, epsilon: float | None, weight_decay: float | None) -> None:
    require(all(0 <= b < 1 for b in (b1, b2) if b is not None), "b1 and b2 must lie in 0..1, 1 excluded")
    require(weight_decay is None or weight_decay >= 0, f"weight_decay={weight_decay} must be 0 or more")
    require(epsilon is None or epsilon > 0, f"epsilon={epsilon} must be positive")
