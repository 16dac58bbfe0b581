"""The config subtree of what a step learns from."""

import math
from dataclasses import dataclass
from typing import Literal

from core.config import require
from objectives.schedule import Weight, largest, require_weight


@dataclass(frozen=True)
class TargetsConfig:
    """How much a teacher's stored distributions count: `config.objective.targets`; `config.teach` says whose."""

    # Of the cross-entropy with the teacher's distributions; the next token's has what is left of 1. 0: no teacher.
    weight: Weight = 0.0

    def __post_init__(self):
        if self.asked:
            require_weight("weight", self.weight)
            require(largest(self.weight) <= 1, f"weight={self.weight} must lie in 0 to 1")

    @property
    def asked(self) -> bool:
        """Whether there is a teacher."""
        return self.weight != 0


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


LayerMap = tuple[tuple[int, int], ...]  # pairs of a student's layer and a teacher's, each counted from 1


@dataclass(frozen=True)
class AttentionConfig:
    """How much a teacher's attention counts: `config.objective.distill.attention`."""

    maps: Weight = 0.0  # times the divergence of whom each token attends to
    values: Weight = 0.0  # times that of the relations among values
    layers: LayerMap = ()  # empty spreads up to four pairs over the depth

    def __post_init__(self):
        _require_optional("maps", self.maps)
        _require_optional("values", self.values)
        _require_layers(self.layers, self.maps, self.values)


@dataclass(frozen=True)
class FeaturesConfig:
    """How much a teacher's residual stream counts: `config.objective.distill.features`."""

    weight: Weight = 0.0  # times 1 - cosine between the student's, projected, and the teacher's
    layers: LayerMap = ()  # after which the stream is compared; empty spreads up to four pairs over the depth

    def __post_init__(self):
        _require_optional("weight", self.weight)
        _require_layers(self.layers, self.weight)


def _require_optional(name: str, weight: Weight) -> None:
    if weight != 0:
        require_weight(name, weight)


def _require_layers(layers: LayerMap, *weights: Weight) -> None:
    require(not layers or any(weights), f"layers={layers} need a weight above 0")
    require(len(set(layers)) == len(layers), f"layers={layers} names a pair twice")


@dataclass(frozen=True)
class DistillConfig:
    """What a teacher's signals count: `config.objective.distill`; docs/objectives.md says more."""

    # The workdir of a run that trained, whose last checkpoint teaches, or that imported; or a Hugging Face folder.
    teacher: str = ""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the teacher's parameters and computation
    # w in (1 - w) * cross-entropy + w * temperature^2 * divergence; 0 leaves the teacher's logits out.
    weight: Weight = 0.5
    temperature: float = 1.0  # that both models' logits are divided by
    # Of the teacher's distribution q and the student's p. forward_kl is KL(q | p), reverse_kl KL(p | q).
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    attention: AttentionConfig = AttentionConfig()
    features: FeaturesConfig = FeaturesConfig()

    def __post_init__(self):
        _require_optional("weight", self.weight)
        require(largest(self.weight) <= 1, f"weight={self.weight} must be at most 1: the rest is the cross-entropy's")
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"temperature={self.temperature} must be positive",
        )
        inside = (self.attention.maps, self.attention.values, self.features.weight)
        require(bool(self.teacher) or not any(inside), "attention and features need a teacher")
        require(not self.teacher or any((self.weight, *inside)), "a teacher needs a weight above 0 somewhere")


@dataclass(frozen=True)
class FillInTheMiddleConfig:
    """Which documents are rearranged: `config.objective.fill_in_the_middle`; docs/objectives.md says more."""

    # Of documents. StarCoder's is 0.5; up to 0.9 Bavarian et al. found no worse loss from left to right.
    rate: float = 0.0
    spm_rate: float = 0.5  # of these, with the suffix before the prefix
    sources: tuple[str, ...] = ()  # whose documents; empty is all
    # Special tokens of the tokenizer (tokenizer.special); these are StarCoder's names.
    prefix: str = "<fim_prefix>"
    suffix: str = "<fim_suffix>"
    middle: str = "<fim_middle>"

    def __post_init__(self):
        for name in ("rate", "spm_rate"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must lie in 0 to 1")
        require(len(set(self.sentinels.values())) == len(self.sentinels), "prefix, suffix and middle must differ")

    @property
    def sentinels(self) -> dict[str, str]:
        """The special tokens by what follows each."""
        return {"prefix": self.prefix, "suffix": self.suffix, "middle": self.middle}

    @property
    def asked(self) -> bool:
        """Whether any document is rearranged."""
        return self.rate > 0


@dataclass(frozen=True)
class RepeatsConfig:
    """Which repeated n-grams are not trained on: `config.objective.repeats`. The numbers are OLMo 2's."""

    mask: Literal["none", "span", "row"] = "none"  # the repetition's tokens, or as OLMo the row that holds one
    min_period: int = 1  # tokens of an n-gram
    max_period: int = 13
    max_count: int = 32  # times in a row from which on it is left out

    def __post_init__(self):
        require(
            0 < self.min_period <= self.max_period,
            f"min_period={self.min_period} must be positive, and max_period={self.max_period} no less",
        )
        require(self.max_count > 1, f"max_count={self.max_count} must be 2 or more: once is no repetition")

    @property
    def asked(self) -> bool:
        """Whether anything is left out."""
        return self.mask != "none"


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised: `config.objective`. The default is the cross-entropy of the next token alone."""

    # Times a token's squared log-sum-exp, added to its cross-entropy so that output logits do not drift: PaLM's is
    # 1e-4, OLMo 2's 1e-5. Of the next token's logits alone.
    z_loss: float = 0.0
    targets: TargetsConfig = TargetsConfig()
    multi_token: MultiTokenConfig = MultiTokenConfig()
    distill: DistillConfig = DistillConfig()
    fill_in_the_middle: FillInTheMiddleConfig = FillInTheMiddleConfig()
    repeats: RepeatsConfig = RepeatsConfig()

    def __post_init__(self):
        require(math.isfinite(self.z_loss) and self.z_loss >= 0, f"z_loss={self.z_loss} must be 0 or more")
        require(
            not (self.targets.asked and self.distill.teacher and self.distill.weight != 0),
            "targets.weight and distill.weight both share the cross-entropy with a teacher; make one of them 0",
        )
        require(
            not (self.targets.asked and self.fill_in_the_middle.asked),
            "targets.weight takes what a teacher said of documents as they are, and fill_in_the_middle.rate "
            "rearranges them; make one of them 0",
        )
