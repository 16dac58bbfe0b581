"""What a step minimises, from config: objectives added up."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from core.errors import UserError
from model import transformer
from model.config import ModelConfig
from objectives.config import DistillConfig, ObjectiveConfig
from objectives.distill import Logits
from objectives.interface import OWN, Named, Objective, Teacher, see
from objectives.multi_token import Modules, Trunk
from objectives.next_token import NextToken
from objectives.predicted import Predicted
from objectives.targets import StoredTargets
from objectives.transfer import Transfer, projections, spread


class Metrics(NamedTuple):
    """Of a batch, or a part of one."""

    sums: Named  # to be divided by the counts of their names
    max_logit_LN: jax.Array  # the largest attention logit of every layer and head, modules behind the trunk's layers


@dataclass(frozen=True)
class Total:
    """All objectives of a run of so many steps."""

    model: ModelConfig
    objectives: tuple[Objective, ...]
    steps: int
    teacher: ModelConfig | None = None

    def init(self, seed: int) -> transformer.Params:
        """Fresh parameters, of the model and of objectives."""
        return transformer.init(self.model, seed) | self.own(seed)

    def own(self, seed: int) -> transformer.Params:
        """Those of objectives alone, drawn apart, so that the model begins as without them."""
        pairs = sum(len(one.layers) for one in self._transfers if one.kind == "features")
        return {OWN: projections(seed, pairs, self.model.d_model, self.teacher.d_model)} if pairs else {}

    def _after(self, side: int) -> tuple[int, ...]:
        """Numbers of layers after which residual streams are compared, the student's or the teacher's."""
        return tuple(sorted({pair[side] for one in self._transfers for pair in one.streams}))

    @property
    def _transfers(self) -> list[Transfer]:
        return [one for one in self.objectives if isinstance(one, Transfer)]

    def flops_per_token(self, row_length: int) -> float:
        """Training FLOPs a token: the model's, with all passes over its output layer, and a teacher's forward pass.

        Not counted: what the backward pass computes again, and relations and projections of `objectives/transfer.py`.
        """
        model, further = self.model, self.passes - self.model.multi_token.tokens
        own = model.flops_per_token(row_length) + 6 * further * model.vocab_size * model.d_model
        return own + self.teacher_flops_per_token(row_length)

    def teacher_flops_per_token(self, row_length: int) -> float:
        """Those of the teacher, whose output layer only its distributions need."""
        if self.teacher is None:
            return 0.0
        speaks = any(isinstance(one, Logits) for one in self.objectives)
        unused = 0 if speaks else 2 * self.teacher.vocab_size * self.teacher.d_model
        return self.teacher.flops_per_token(row_length) / 3 - unused

    @property
    def passes(self) -> int:
        """How often a token goes through the output layer, forward."""
        return sum(one.passes for one in self.objectives)

    @property
    def repeated_passes(self) -> int:
        """How many of them the backward pass makes again, for they run one after another."""
        return sum(one.passes for one in self.objectives if isinstance(one, Modules | Trunk))

    def counts(self, batch: Any) -> Named:
        """Of the whole batch, for `loss` of its parts."""
        return {name: count for one in self.objectives for name, count in one.counts(batch).items()}

    def loss(
        self,
        params: transformer.Params,
        batch: Any,
        counts: Named,
        step: jax.Array | int = 0,
        teacher: transformer.Params | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """What is minimised, and what is shown of it; the parameters of a teacher get no gradient."""
        taught_by = None if self.teacher is None else Teacher(self.teacher, teacher, self._after(1))
        seen = see(self.model, params, batch, self._after(0), taught_by)
        found = [one.measure(seen, counts, step / self.steps) for one in self.objectives]
        total, *others = (one.total for one in found)
        sums = {name: value for one in found for name, value in one.sums.items()}
        of_modules = [one.max_logit_MN for one in found if one.max_logit_MN is not None]
        max_logit_LN = jnp.concatenate([seen.output.max_logit_LN, *of_modules])
        return sum(others, total), Metrics(sums, max_logit_LN)


def build(
    model: ModelConfig,
    config: ObjectiveConfig,
    steps: int = 1,
    teacher: ModelConfig | None = None,
    temperature: float = 1.0,
) -> Total:
    """The next token, and what the config adds to it; `temperature` is that of stored targets."""
    distill = config.distill if teacher is not None else DistillConfig(weight=0.0)
    taught = StoredTargets(config.targets.weight, temperature, config.z_loss)
    objectives: list[Objective] = [taught if config.targets.asked else NextToken(config.z_loss, distill.weight)]
    if model.multi_token.modules:
        objectives.append(Modules(model.multi_token.tokens, config.multi_token.weight, config.z_loss))
    if config.multi_token.trunk:
        objectives.append(Trunk(config.multi_token.trunk))
    if distill.weight:
        objectives.append(Logits(distill.weight, distill.temperature, distill.divergence))
    if teacher is not None:
        objectives += _transfers(model, teacher, distill)
    if config.repeats.asked:
        objectives.append(Predicted())
    return Total(model, tuple(objectives), steps, teacher)


def _transfers(model: ModelConfig, teacher: ModelConfig, config: DistillConfig) -> list[Objective]:
    """What is taken from inside a teacher."""
    default = spread(model.num_layers, teacher.num_layers)
    attention, features = config.attention.layers or default, config.features.layers or default
    asked = {
        "maps": (config.attention.maps, attention),
        "values": (config.attention.values, attention),
        "features": (config.features.weight, features),
    }
    return [Transfer(kind, *own) for kind, own in asked.items() if own[0]]


def require_teacher(model: ModelConfig, config: ObjectiveConfig, teacher: ModelConfig) -> None:
    """Refuses a teacher that speaks of other tokens, and layers that one of both models has not."""
    for name in ("attention", "features"):
        for own, theirs in getattr(config.distill, name).layers:
            for whose, layer, of in (("model", own, model), ("teacher", theirs, teacher)):
                if not 1 <= layer <= of.num_layers:
                    raise UserError(
                        f"config objective.distill.{name}.layers pairs {own} with {theirs}, and the {whose} has the "
                        f"layers 1 to {of.num_layers}"
                    )
    if model.vocab_size != teacher.vocab_size:
        raise UserError(
            f"config objective.distill.teacher predicts {teacher.vocab_size:,} tokens and model.vocab_size is "
            f"{model.vocab_size:,}; distributions over different vocabularies do not compare, so give the student "
            "the teacher's tokenizer and vocabulary (tokenizer.path, model.vocab_size)"
        )


def require_room(model: ModelConfig, config: ObjectiveConfig, row_length: int) -> None:
    """Refuses a row that no token so far ahead fits into, or no repetition of those to be left out."""
    asked = {
        "model.multi_token.tokens": model.multi_token.tokens,
        "objective.multi_token.trunk": 1 + len(config.multi_token.trunk),
    }
    for name, tokens in asked.items():
        if tokens > row_length:
            raise UserError(
                f"config {name} asks for {tokens} future tokens, and a row holds {row_length} (batch.row_length); "
                "predict fewer, or lengthen the rows"
            )
    repeats = config.repeats
    if repeats.asked and (least := repeats.min_period * repeats.max_count) > row_length:
        raise UserError(
            f"config objective.repeats looks for {repeats.max_count} times {repeats.min_period} tokens, which are "
            f"{least:,}, and a row holds {row_length} (batch.row_length); lower max_count or min_period, or lengthen "
            "the rows"
        )
