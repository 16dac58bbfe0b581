"""What a few runs of several variants say: means with intervals, tests, and a verdict that may be none.

Final losses of a variant are one number a seed; a run that failed is infinite and counts against its variant.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and where it lies with 95% confidence, by Student's t."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values; infinite where one is."""
    own = np.asarray(values, np.float64)
    if not np.isfinite(own).all() or len(own) < 2:
        return Interval(float(own.mean()), -math.inf, math.inf)
    half = stats.t.ppf(0.975, len(own) - 1) * own.std(ddof=1) / math.sqrt(len(own))
    return Interval(float(own.mean()), float(own.mean() - half), float(own.mean() + half))


def p_less(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Probability of a difference as large if `ours` were not less in the mean: Welch's t-test, one-sided."""
    if not np.isfinite(ours).all():
        return 1.0
    if not np.isfinite(theirs).all():  # a baseline that failed is not a number to be below of
        return math.nan
    if np.ptp(ours) < 1e-12 > np.ptp(theirs):  # nothing to divide by
        return 0.0 if ours[0] < theirs[0] else 1.0
    return float(stats.ttest_ind(ours, theirs, equal_var=False, alternative="less").pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for their number (Holm 1979): with what chance any of them refuses where it should not."""
    corrected, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: (math.isnan(pair[1]), pair[1]))):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def steps_to(target: float, lengths: Sequence[float], losses: Sequence[float]) -> float:
    """The share of the steps at which a run of its own would end at `target`, between the lengths that were run.

    The loss is interpolated over the logarithm of the length. Below the shortest it is the shortest, an upper bound;
    beyond the longest it is infinite.
    """
    if losses[-1] > target:
        return math.inf
    for i in range(len(lengths) - 1, 0, -1):
        if losses[i - 1] > target:
            share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
            return math.exp(math.log(lengths[i - 1]) + share * math.log(lengths[i] / lengths[i - 1]))
    return lengths[0]


def bootstrap_steps(
    baseline: Sequence[float], lengths: Sequence[float], losses_LS: np.ndarray, draws: int = 4000
) -> Interval:
    """`steps_to` the baseline's mean, with an interval over seeds of both, drawn with replacement."""
    random, theirs = np.random.default_rng(0), np.asarray(baseline)

    def means(values_XS: np.ndarray) -> np.ndarray:
        """[..., draws] of values drawn again, their deviation widened as Student's t does for so few."""
        n = values_XS.shape[-1]
        wider = math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975)
        centre_X1 = values_XS.mean(-1, keepdims=True)
        return centre_X1 + (values_XS[..., random.integers(n, size=(draws, n))].mean(-1) - centre_X1) * wider

    drawn = zip(means(theirs), means(losses_LS).T)
    found = [steps_to(float(target), lengths, own) for target, own in drawn]
    low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
    return Interval(steps_to(theirs.mean(), lengths, losses_LS.mean(1)), float(low), float(high))


class Verdict(NamedTuple):
    """Who ends lowest at equal steps, where that is more than chance."""

    winner: str | None
    p: float  # the largest, corrected, of its tests against all others
    said: str


def verdict(losses: Mapping[str, Sequence[float]], significance: float) -> Verdict:
    """The variant whose final loss is below that of every other, each test at the corrected level; or none.

    Which one to test was chosen by looking, so the tests are two-sided: of two that are equal one is always lower.
    A variant of which a run failed neither wins nor is beaten.
    """
    # Variants of equal runs are one: they never did what sets them apart, such as a clip that nothing reached.
    alike: dict[tuple[float, ...], list[str]] = {}
    for name, own in losses.items():
        if np.isfinite(own).all():
            alike.setdefault(tuple(own), []).append(name)
    whole = {" = ".join(names): own for own, names in alike.items()}
    if len(whole) < 2:
        return Verdict(None, 1.0, f"no winner: runs failed of all but {len(whole)} of {len(losses)} variants")
    best = min(whole, key=lambda name: float(np.mean(whole[name])))
    tests = {name: min(1.0, 2 * p_less(whole[best], own)) for name, own in whole.items() if name != best}
    others = holm(tests)
    near = [name for name, p in others.items() if not p < significance]
    if not near:
        worst = max(others.values())
        return Verdict(best, worst, f"{best} ends lowest: p {shown_p(worst)} against each of the others that ended")
    among = f"{', '.join([best, *near[:-1]])} and {near[-1]}"
    return Verdict(None, max(others.values()), f"no winner: {among} cannot be told apart at p < {significance:g}")


def shown_p(p: float) -> str:
    """As papers write it."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"
