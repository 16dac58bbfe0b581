"""The pure step: `step(state, batch) -> (state, metrics)`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kernels.dispatch import target
from objectives.build import Metrics, Total
from objectives.interface import Named, mean
from optim.metrics import collect
from train.sharding import on_mesh
from train.state import TrainState

# (state, batch), and the parameters of a teacher where there is one
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    objective: Total,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    shardings: TrainState,
    microbatches: int = 1,
) -> Step:
    """One update from one batch."""

    def step(state: TrainState, batch: Any, teacher: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        counts = objective.counts(batch)
        loss = functools.partial(objective.loss, counts=counts, step=state.step, teacher=teacher)
        grads, measured = accumulate(loss, state.params, batch, counts, microbatches, shardings.params)
        opt_state = to_device(state.opt_state, shardings.opt_state)
        losses = {name: mean(measured.sums[name], counts[name]) for name in measured.sums}
        watched = {"loss": losses["loss"], "max_logit_LN": measured.max_logit_LN}
        updates, opt_state = optimizer.update(grads, opt_state, state.params, **watched)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            **losses,
            "learning_rate": schedule(state.step),
            "grad_norm": optax.tree.norm(grads),
            "max_logit": jnp.max(measured.max_logit_LN),
            **collect(opt_state),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def accumulate(
    loss: Callable[[Any, Any], tuple[jax.Array, Metrics]],
    params: Any,
    batch: Any,
    counts: Named,
    microbatches: int,
    shardings: Any,
) -> tuple[Any, Metrics]:
    """Gradients and metrics of `loss(params, batch)`, from parts of the batch one after the other.

    Every part is divided by the counts of the whole batch, so that rows with more padding count no more. A device
    takes the parts from its own rows. Sums are float32, each device's of its own share of the parameters.
    """

    def of_part(part: Any) -> tuple[Any, Metrics]:
        (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, part)
        return lay_out(grads, shardings), metrics

    if microbatches == 1:
        return of_part(batch)

    def add(totals: tuple[Any, Named], part: Any) -> tuple[Any, jax.Array]:
        grads, metrics = of_part(part)
        return jax.tree.map(jnp.add, totals, (grads, metrics.sums)), metrics.max_logit_LN

    parts = jax.tree.map(lambda a: a.reshape(-1, microbatches, *a.shape[1:]).swapaxes(0, 1), batch)
    zeros = lay_out(jax.tree.map(jnp.zeros_like, params), shardings)
    (grads, sums), max_logit_MLN = jax.lax.scan(add, (zeros, {name: jnp.zeros(()) for name in counts}), parts)
    return grads, Metrics(sums, max_logit_MLN.max(0))


def lay_out(tree: Any, shardings: Any) -> Any:
    """Arrays split as told; on one device untouched, so that XLA sees nothing between them and what follows."""
    split = jax.tree.leaves(shardings)[0].mesh.size > 1
    return jax.lax.with_sharding_constraint(tree, shardings) if split else tree


def to_device(tree: Any, shardings: Any) -> Any:
    """Arrays that lie in the memory of the host brought to the device, each device its part."""

    def one(array: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.memory_kind in (None, "device"):
            return array
        return jax.device_put(array, sharding.with_memory_kind("device"))

    return jax.tree.map(one, tree, shardings)


# Sums of gradients that travel while products run. A fusion that does both needs more than the 16 MiB of VMEM that
# XLA takes by default. SmolLM3-3B on 256 v5e: 56 ms of exposed sums a step less. For other kinds of TPU XLA refuses
# to fuse all-reduces.
V5E = "TPU v5 lite"
OVERLAP = {
    "xla_enable_async_all_reduce": True,
    "xla_enable_async_reduce_scatter_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": True,
    "xla_tpu_scoped_vmem_limit_kib": 32 * 1024,
}


# XLA of libtpu 0.0.51 takes the sums of gradients out of the loops over microbatches and over modules, and fails at
# those of a head of its own, and of the output layer that modules share.
SAFE = {"xla_disable_hlo_passes": "while-loop-all-reduce-code-motion"}
FAILS = {"head", "multi_token"}  # parameters


def compiler_options(mesh: Mesh, fails: bool = False) -> dict[str, bool | int | str]:
    """What XLA is told beside its defaults for the devices of a mesh."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        if target().platform != "tpu" or mesh.size == 1:
            return {}
        return (OVERLAP if target().kind == V5E else {}) | (SAFE if fails else {})


def compile_step(
    step: Step, state_shardings: TrainState, batch_sharding: NamedSharding, teacher: tuple[Any, ...] = ()
) -> Step:
    """The step jitted, its state donated and laid out as told, a `teacher` too, which stays as it is."""
    return jax.jit(
        on_mesh(step, batch_sharding.mesh),
        in_shardings=(state_shardings, batch_sharding, *teacher),
        out_shardings=(state_shardings, NamedSharding(batch_sharding.mesh, P())),  # every process reads all metrics
        donate_argnums=0,
        compiler_options=compiler_options(batch_sharding.mesh, not FAILS.isdisjoint(state_shardings.params)),
    )
