"""One Optax chain from config."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from core.errors import UserError, suggest
from optim.config import OptimConfig
from optim.groups import Direction, Group, groups, label
from optim.muon import scale_by_muon
from optim.schedule import warmup_stable_decay
from optim.weight_decay import add_cautious_decay

# What turns gradients into a direction, before weight decay and learning rate.
OPTIMIZERS: dict[str, Callable[[OptimConfig, Direction], optax.GradientTransformation]] = {
    "adamw": lambda _, own: optax.scale_by_adam(own.b1, own.b2, own.epsilon),
    "muon": lambda config, _: scale_by_muon(config.muon),
}


def build(config: OptimConfig, steps: int) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """The chain, and its schedule for the metrics.

    `update(grads, state, params, loss=..., max_logit_LN=...)`: those that watch the step are given what it measured.
    """
    schedule = warmup_stable_decay(config, steps)
    found = groups(config)
    kinds = _kinds(config, found)

    def of_groups(value: Callable[[Group], Any]) -> Callable[[Any], Any]:
        """Of parameters, what `value` says of the group of each."""
        return lambda params: jax.tree.map(lambda name: value(found[name]), label(params, config))

    decays = {group.weight_decay for group in found.values()} - {0.0}
    multipliers = {group.multiplier for group in found.values()} - {1.0}
    add_decay = add_cautious_decay if config.cautious_decay else optax.add_decayed_weights
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.partition(
            {name: OPTIMIZERS[direction.optimizer](config, direction) for direction, name in kinds.items()},
            of_groups(lambda group: kinds[group.direction]),
        ),
        *[add_decay(decay, of_groups(lambda g, d=decay: g.weight_decay == d)) for decay in sorted(decays)],
        *[optax.masked(optax.scale(m), of_groups(lambda g, m=m: g.multiplier == m)) for m in sorted(multipliers)],
        optax.scale_by_learning_rate(schedule),
    )
    return optax.with_extra_args_support(chain), schedule


def _kinds(config: OptimConfig, found: dict[str, Group]) -> dict[Direction, str]:
    """Every direction that some group takes, and its name in checkpoints: adamw, adamw_2, muon."""
    kinds: dict[Direction, str] = {}
    for name, group in found.items():
        if group.direction.optimizer not in OPTIMIZERS:
            own = name in config.groups and config.groups[name].optimizer
            key = f"groups.{name}.optimizer" if own else "optimizer"
            known = suggest(group.direction.optimizer, OPTIMIZERS)
            raise UserError(f"config optim.{key}={group.direction.optimizer!r} is not known{known}")
        alike = sum(kind.optimizer == group.direction.optimizer for kind in kinds)
        kinds.setdefault(
            group.direction, f"{group.direction.optimizer}_{alike + 1}" if alike else group.direction.optimizer
        )
    return kinds
