"""What an objective is: it maps what the model computed of a batch to sums, and the batch alone to their counts.

A batch may come in parts, one after the other, and with rows of any padding. So counts are taken of the whole batch,
and the sums of every part are divided by them: tokens weigh alike wherever they stand.
"""

from typing import Any, NamedTuple, Protocol

import jax

from kernels.cross_entropy.api import CrossEntropyOutput, linear_cross_entropy
from kernels.cross_entropy.problem import Head, TopK
from model import transformer
from model.config import ModelConfig

OWN = "distill"  # where among the parameters those lie that objectives have of their own
Named = dict[str, jax.Array]  # scalars by the name of the metric that they belong to


class Seen(NamedTuple):
    """What objectives look at: a model, what its trunk computed of a batch, the batch, and a teacher's view of it."""

    model: ModelConfig
    params: transformer.Params  # those that objectives have of their own among them
    output: transformer.Output
    batch: Any
    head_VD: jax.Array  # in the dtype of the computation
    teacher: "Seen | None" = None  # of the same batch, without gradient

    def predict(self, hidden_BTD: jax.Array | None = None, temperature: float = 1.0) -> Head:
        """Distributions, logits divided by a temperature: the next token's, or those of another hidden stream."""
        hidden_BTD = self.output.hidden_BTD if hidden_BTD is None else hidden_BTD
        cap = self.model.final_soft_cap
        if temperature != 1:
            hidden_BTD, cap = hidden_BTD / temperature, cap and cap / temperature
        return Head(hidden_BTD, self.head_VD, cap)

    def cross_entropy(self, own: Head, targets_BT, weights_BT, **options: Any) -> CrossEntropyOutput:
        """Of this model's distributions, summed over tokens; the options are those of `linear_cross_entropy`."""
        options |= {"soft_cap": own.soft_cap, "implementation": self.model.kernels.cross_entropy}
        return linear_cross_entropy(own.x_BTE, own.w_VE, targets_BT, weights_BT, **options)


def nobody(of_BT: jax.Array) -> TopK:
    """A teacher that names no token: its share of the cross-entropy is left out, and of the z-loss nothing."""
    return TopK(jax.numpy.zeros((*of_BT.shape, 1), jax.numpy.int32), jax.numpy.zeros((*of_BT.shape, 1)))


class Teacher(NamedTuple):
    """A model to learn from, of any depth and width, which sees the same rows."""

    model: ModelConfig
    params: transformer.Params
    after: tuple[int, ...] = ()  # layers whose residual stream is compared


def see(
    model: ModelConfig,
    params: transformer.Params,
    batch: Any,
    after: tuple[int, ...] = (),
    teacher: Teacher | None = None,
) -> Seen:
    """Runs the trunk, and a teacher's; their residual streams are kept `after` so many layers."""
    row = (batch.tokens_BT, batch.segment_ids_BT, batch.positions_BT)
    output = transformer.apply(model, of_model(params), *row, after)
    taught = None
    if teacher is not None:
        taught = see(teacher.model, jax.lax.stop_gradient(teacher.params), batch, teacher.after)
    return Seen(model, params, output, batch, transformer.head(model, params), taught)


def of_model(params: transformer.Params) -> transformer.Params:
    """Without the parameters that objectives have of their own, which nothing but training needs."""
    return {name: leaves for name, leaves in params.items() if name != OWN}


class Measured(NamedTuple):
    """Of one objective and a batch, or a part of one."""

    total: jax.Array  # what is minimised: sums divided by the counts, times their weights
    sums: Named  # what the metrics show, each to be divided by the count of its name
    max_logit_MN: jax.Array | None = None  # the largest attention logit of every head of modules that it ran


class Objective(Protocol):
    """One thing to learn; `progress` is the part of the run that is done, from 0 to 1."""

    @property
    def passes(self) -> int:
        """How often a token of the student goes through the output layer, forward."""

    def counts(self, batch: Any) -> Named:
        """What the sums of a whole batch are divided by."""

    def measure(self, seen: Seen, counts: Named, progress: jax.Array | float) -> Measured:
        """Of `seen`, which may be a part of what `counts` are of."""


def mean(of: jax.Array, count: jax.Array) -> jax.Array:
    """A sum over tokens a token; 0 where there are none."""
    return of / jax.numpy.maximum(count, 1.0)
