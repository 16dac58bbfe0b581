"""The config subtree of the optimiser."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from core.config import require


@dataclass(frozen=True)
class GroupConfig:
    """What is different for some parameters: `config.optim.groups.NAME`.

    NAME is one of the groups of `optim/groups.py` or, with a `pattern` over paths, a new one that takes its
    parameters from those. What is left out is as for all, of a new group as in the one that a parameter comes from.
    """

    pattern: str = ""
    optimizer: str = ""  # of OPTIMIZERS in optim/build.py
    multiplier: float | None = None  # of the learning rate, otherwise 1
    weight_decay: float | None = None  # otherwise that of all for matrices inside layers, 0 for others
    b1: float | None = None
    b2: float | None = None
    epsilon: float | None = None

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r} is no regular expression: {error}") from error
        require(self.multiplier is None or self.multiplier >= 0, f"multiplier={self.multiplier} must be 0 or more")
        _check(self.b1, self.b2, self.epsilon, self.weight_decay)


@dataclass(frozen=True)
class ClipConfig:
    """How gradients are kept in bounds before an optimiser sees them (`optim/clip.py`): `config.optim.clip`."""

    # global_norm, and the warm-up of adagc, limit the norm of all gradients to optim.clip_norm; zclip does so too,
    # beside its own limit.
    kind: Literal["global_norm", "agc", "adagc", "zclip", "none"] = "global_norm"
    agc_ratio: float = 0.01  # of a unit's gradient to its weights, at most
    agc_floor: float = 1e-3  # norm that the weights of a unit count for at least
    agc_exempt: tuple[str, ...] = ("head",)  # groups of parameters
    adagc_ratio: float = 1.04  # of a tensor's gradient to its running mean, at most
    adagc_decay: float = 0.99  # of that mean
    adagc_warmup: int = 100  # steps
    zclip_threshold: float = 2.5  # standard deviations above the mean
    zclip_decay: float = 0.97  # of mean and variance
    zclip_warmup: int = 25  # steps, whose norms give the first mean and variance

    def __post_init__(self):
        for name in ("agc_ratio", "agc_floor", "adagc_ratio", "zclip_threshold"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("adagc_decay", "zclip_decay"):
            require(0 < getattr(self, name) < 1, f"{name}={getattr(self, name)} must lie between 0 and 1")
        for name in ("adagc_warmup", "zclip_warmup"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")


@dataclass(frozen=True)
class SkipConfig:
    """Which updates are left out (`optim/skip.py`): `config.optim.skip`. Those that are not finite always are."""

    spikes: bool = False  # also those whose loss or gradient norm stands out
    sigmas: float = 6.0  # standard deviations above the mean of the window
    window: int = 128  # steps; spikes are looked for once half of it is seen
    nonfinite_limit: int = 10  # in a row, at which the run stops

    def __post_init__(self):
        require(self.sigmas > 0, f"sigmas={self.sigmas} must be positive")
        require(self.window >= 4, f"window={self.window} must be 4 or more")
        require(self.nonfinite_limit > 0, f"nonfinite_limit={self.nonfinite_limit} must be positive")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes from the plateau to its end (`optim/schedule.py`): `config.optim.schedule`."""

    # cosine and linear go down from the end of the warm-up on, whatever optim.decay_fraction and `decay` say
    kind: Literal["warmup_stable_decay", "cosine", "linear"] = "warmup_stable_decay"
    decay: Literal["linear", "1-sqrt", "cosine", "exponential"] = "linear"
    decay_steps: int = 0  # in place of optim.decay_fraction of the run
    final: float = 0.0  # of optim.learning_rate, reached when the run ends
    # Where batch.stages have steps of other sizes, the rate is multiplied by (tokens of a step / base_tokens) to this
    # power: none is 0, sqrt 0.5, linear 1; a list has one for each stage.
    batch: Literal["none", "sqrt", "linear"] | float | tuple[float, ...] = "none"
    base_tokens: int = 0  # of the step that learning_rate is for; 0 is that of the first stage

    def __post_init__(self):
        require(self.decay_steps >= 0, f"decay_steps={self.decay_steps} must be 0 or more")
        require(0 <= self.final <= 1, f"final={self.final} must lie in 0..1")
        require(self.base_tokens >= 0, f"base_tokens={self.base_tokens} must be 0 or more")
        shape = self.decay if self.kind == "warmup_stable_decay" else self.kind
        require(shape != "exponential" or self.final > 0, "decay='exponential' never gets to final=0; 0.1 is usual")
        given = self.batch if isinstance(self.batch, tuple) else ()
        require(all(map(math.isfinite, given)), f"batch={self.batch} must be numbers")


@dataclass(frozen=True)
class SoapConfig:
    """SOAP (`optim/soap.py`): `config.optim.soap`. The paper's runs have b1 = b2 = 0.95."""

    interval: int = 10  # steps from one basis to the next
    max_dimension: int = 10_000  # a larger side of a matrix is not rotated
    one_sided: bool = False  # only the smaller side is
    statistics_decay: float | None = None  # of G G^T and G^T G; None is b2
    normalize: bool = False  # every matrix's direction to RMS 1; for long intervals

    def __post_init__(self):
        _check_sides(self.interval, self.max_dimension)
        decay = self.statistics_decay
        require(decay is None or 0 <= decay < 1, f"statistics_decay={decay} must lie in 0..1, 1 excluded")


@dataclass(frozen=True)
class ShampooConfig:
    """Shampoo (`optim/shampoo.py`): `config.optim.shampoo`."""

    interval: int = 10  # steps from one inverse root to the next
    max_dimension: int = 10_000  # a larger side of a matrix is left as it is
    one_sided: bool = False  # only the smaller side is multiplied
    statistics_decay: float | None = None  # of G G^T and G^T G; None is b2, 1 sums them as in the paper
    ridge: float = 1e-6  # added to the eigenvalues, in parts of the largest
    root: Literal["eigh", "newton"] = "eigh"  # newton needs products alone
    graft: Literal["adam", "rmsprop", "none"] = "adam"  # whose norm each matrix's direction gets

    def __post_init__(self):
        _check_sides(self.interval, self.max_dimension)
        decay = self.statistics_decay
        require(decay is None or 0 <= decay <= 1, f"statistics_decay={decay} must lie in 0..1")
        require(self.ridge > 0, f"ridge={self.ridge} must be positive")


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
        require(finite, f"threshold={self.threshold} must be 0 or more")
        require(0 <= self.alpha <= 1, f"alpha={self.alpha} must lie in 0..1")


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
            require(math.isfinite(value) and value > 0, f"{name}={value} must be positive")
        require(0 <= self.start < 1, f"start={self.start} must lie in 0..1, 1 excluded")
        require(0 <= self.least_rate <= 1, f"least_rate={self.least_rate} must lie in 0..1")
        require(self.horizon >= 0, f"horizon={self.horizon} must be 0 or more")
        require(0 < self.smoothing <= 1, f"smoothing={self.smoothing} must lie in 0..1, 0 excluded")
        require(self.slack == 0 or self.slack >= 1, f"slack={self.slack} must be 0 or at least 1")


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
    decay_fraction: float = 0.11  # of all steps, at the end; how, says `schedule`
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of the matrices inside layers; not of embedding and norms
    cautious_decay: bool = False  # decays only where the update shrinks the weight, too
    clip_norm: float = 1.0
    muon: MuonConfig = field(default_factory=MuonConfig)
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    clip: ClipConfig = field(default_factory=ClipConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    soap: SoapConfig = field(default_factory=SoapConfig)
    shampoo: ShampooConfig = field(default_factory=ShampooConfig)
    qk_clip: QKClipConfig = field(default_factory=QKClipConfig)
    adaptive: AdaptiveConfig = field(default_factory=AdaptiveConfig)

    def __post_init__(self):
        clip, adaptive = self.qk_clip, self.adaptive
        require(
            adaptive.slack == 0 or clip.threshold >= adaptive.least_threshold,
            f"adaptive.slack={adaptive.slack} moves the threshold from least_threshold={adaptive.least_threshold} up "
            f"to qk_clip.threshold={clip.threshold}, which must be at least that",
        )
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(0 <= self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction} must lie in 0..1")
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
        _check(self.b1, self.b2, self.epsilon, self.weight_decay)


def _check_sides(interval: int, max_dimension: int) -> None:
    require(interval >= 1, f"interval={interval} must be 1 or more")
    require(max_dimension >= 0, f"max_dimension={max_dimension} must be 0 or more")


def _check(b1: float | None, b2: float | None, epsilon: float | None, weight_decay: float | None) -> None:
    require(all(0 <= b < 1 for b in (b1, b2) if b is not None), "b1 and b2 must lie in 0..1, 1 excluded")
    require(weight_decay is None or weight_decay >= 0, f"weight_decay={weight_decay} must be 0 or more")
    require(epsilon is None or epsilon > 0, f"epsilon={epsilon} must be positive")
