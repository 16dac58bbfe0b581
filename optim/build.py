"""One Optax chain from config."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from core.errors import UserError, suggest
from optim.adaptive import adapt
from optim.clip import clip
from optim.config import OptimConfig
from optim.groups import Direction, Group, groups, label
from optim.muon import scale_by_muon
from optim.qk_clip import qk_clip, watch_logits
from optim.schedule import Steps, make_schedule
from optim.shampoo import shampoo
from optim.skip import skip
from optim.soap import soap
from optim.weight_decay import add_cautious_decay

# What turns gradients into a direction, before weight decay and learning rate.
OPTIMIZERS: dict[str, Callable[[OptimConfig, Direction], optax.GradientTransformation]] = {
    "adamw": lambda _, own: optax.scale_by_adam(own.b1, own.b2, own.epsilon),
    "soap": lambda config, own: soap(config.soap, own),
    "shampoo": lambda config, own: shampoo(config.shampoo, own),
    "muon": lambda config, _: scale_by_muon(config.muon),
}


def build(
    config: OptimConfig, steps: int, batches: tuple[Steps, ...] = ()
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """The chain, and its schedule for the metrics; `batches` are the sizes of the run's, where they are known.

    `update(grads, state, params, loss=..., max_logit_LN=...)`: those that watch the step are given what it measured.
    """
    schedule = make_schedule(config, steps, batches)
    found = groups(config)
    kinds = _kinds(config, found)

    def of_groups(value: Callable[[Group], Any]) -> Callable[[Any], Any]:
        """Of parameters, what `value` says of the group of each."""
        return lambda params: jax.tree.map(lambda name: value(found[name]), label(params, config))

    decays = {group.weight_decay for group in found.values()} - {0.0}
    multipliers = {group.multiplier for group in found.values()} - {1.0}
    add_decay = add_cautious_decay if config.cautious_decay else optax.add_decayed_weights
    chain = optax.chain(
        clip(config),
        optax.partition(
            {name: OPTIMIZERS[direction.optimizer](config, direction) for direction, name in kinds.items()},
            of_groups(lambda group: kinds[group.direction]),
        ),
        *[add_decay(decay, of_groups(lambda g, d=decay: g.weight_decay == d)) for decay in sorted(decays)],
        *[optax.masked(optax.scale(m), of_groups(lambda g, m=m: g.multiplier == m)) for m in sorted(multipliers)],
    )
    rate = optax.scale_by_learning_rate(schedule)
    return skip(chain, rate, _logit_control(config), config.skip), schedule


def _logit_control(config: OptimConfig) -> optax.GradientTransformation:
    """What watches the attention logits, where the config asks for it; it acts on what parameters become."""
    if config.adaptive.rate != "off" or config.adaptive.slack:
        return optax.chain(adapt(config.adaptive, config.qk_clip), watch_logits())
    return optax.chain(qk_clip(config.qk_clip), watch_logits()) if config.qk_clip.threshold else optax.identity()


def _kinds(config: OptimConfig, found: dict[str, Group]) -> dict[Direction, str]:
    """Every direction that some group takes, and its name in checkpoints: adamw, adamw_2, muon."""
    kinds: dict[Direction, str] = {}
    for name, group in found.items():
        if group.direction.optimizer not in OPTIMIZERS:
            asked = config.groups.get(name.partition("/")[0])
            key = f"groups.{name.partition('/')[0]}.optimizer" if asked and asked.optimizer else "optimizer"
            known = suggest(group.direction.optimizer, OPTIMIZERS)
            raise UserError(f"config optim.{key}={group.direction.optimizer!r} is not known{known}")
        alike = sum(kind.optimizer == group.direction.optimizer for kind in kinds)
        kinds.setdefault(
            group.direction, f"{group.direction.optimizer}_{alike + 1}" if alike else group.direction.optimizer
        )
    return kinds
