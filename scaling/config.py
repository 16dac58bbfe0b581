"""The config subtree of comparisons."""

from dataclasses import dataclass, field
from typing import Any

from core.config import require

Keys = tuple[tuple[str, Any], ...]  # (key of the config, value)


@dataclass(frozen=True)
class VariantConfig:
    """One way to train: what it sets, and which keys are tuned for it: `config.compare.variants.NAME`."""

    set: Keys = ()
    # One key after the other, each with its values; those before it at the best that was found.
    tune: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    tuned_as: str = ""  # takes the tuned keys of this variant, and tunes nothing
    # In place of all variants'. The last is below 1 where a step costs more, so that whole runs cost the same.
    lengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class CompareConfig:
    """Variants of one run, each tuned on a seed of its own, then trained on others: `config.compare`."""

    variants: dict[str, VariantConfig] = field(default_factory=dict)
    baseline: str = ""  # whose final loss, over all of train.steps, the others should reach
    seeds: int = 5
    lengths: tuple[float, ...] = (1.0,)  # of the others' runs, as shares of train.steps; each a whole schedule
    significance: float = 0.01  # of the tests, corrected for their number

    def __post_init__(self):
        require(self.seeds >= 2, f"seeds={self.seeds} must be 2 or more: of one run nobody knows the spread")
        require(0 < self.significance < 1, f"significance={self.significance} must lie between 0 and 1")
        for name, lengths in [("", self.lengths), *((f"variants.{n}.", v.lengths) for n, v in self.variants.items())]:
            ascending = all(a < b <= 1 for a, b in zip((0.0, *lengths), lengths))
            require(ascending, f"{name}lengths={lengths} must be ascending shares up to 1")
        require(self.lengths[-1:] == (1.0,), f"lengths={self.lengths} must end with 1")
        if self.variants:
            require(len(self.variants) >= 2, "variants: one alone is no comparison")
            require(
                self.baseline in self.variants, f"baseline={self.baseline!r} is none of {', '.join(self.variants)}"
            )
            own = self.variants[self.baseline].lengths
            require(own in ((), (1.0,)), f"variants.{self.baseline}.lengths={own}: the baseline has all the steps")
        for name, variant in self.variants.items():
            empty = [key for key, values in variant.tune if not values]
            require(not empty, f"variants.{name}.tune: {', '.join(empty)} has no values to try")
            require(not (variant.tune and variant.tuned_as), f"variants.{name} has both tune and tuned_as")
            known = [other for other, own in self.variants.items() if not own.tuned_as]
            require(
                not variant.tuned_as or variant.tuned_as in known,
                f"variants.{name}.tuned_as={variant.tuned_as!r} is none of {', '.join(known)}",
            )

    def lengths_of(self, variant: str) -> tuple[float, ...]:
        """Shares of the steps over which a variant is trained; the baseline over all of them alone."""
        return (1.0,) if variant == self.baseline else self.variants[variant].lengths or self.lengths

    @property
    def in_order(self) -> list[str]:
        """The variants, those that are tuned before those that take what was found."""
        return sorted(self.variants, key=lambda name: bool(self.variants[name].tuned_as))
