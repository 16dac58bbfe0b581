"""What every optimiser of `optim/build.py` has to pass."""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cross_entropy_lab import QUICKLY, quickly_compiled
from model import transformer
from model.config import ModelConfig, MultiToken
from objectives.build import build as build_objective
from objectives.config import DistillConfig, FeaturesConfig, ObjectiveConfig
from optim.build import OPTIMIZERS, build
from optim.config import AdaptiveConfig, MuonConfig, OptimConfig, QKClipConfig, ShampooConfig, SoapConfig
from optim.groups import path_name
from train.checkpoint import Checkpoints
from train.config import MeshConfig
from train.sharding import make_mesh, on_mesh, state_shardings
from train.state import TrainState, begin

# All that a layer may have; four layers and matrices of both orientations. Heads of 8: an output has 16 rows.
MODEL = ModelConfig(64, num_layers=4, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, d_ff=24)
EVERYTHING = dataclasses.replace(
    MODEL, tied_head=False, qkv_bias=True, output_bias=True, feed_forward_bias=True, qk_norm=True
)
STEPS = 4

# What makes an optimiser show within STEPS all that it does, and how far sums in another order may take it.
SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in OPTIMIZERS} | {
    "soap": {"soap": SoapConfig(interval=2)},
    "shampoo": {"shampoo": ShampooConfig(interval=2)},
    "muon": {"muon": MuonConfig(dtype="float32")},  # bfloat16 rounds a matrix in parts otherwise than whole
    "normuon by head": {"optimizer": "muon", "muon": MuonConfig(dtype="float32", normuon_b2=0.9, split="head")},
    "muonclip": {  # what `step_of` says of the logits is above the threshold, and on the way to the limit
        "optimizer": "muon",
        "muon": MuonConfig(dtype="float32"),
        "qk_clip": QKClipConfig(0.98),
        "adaptive": AdaptiveConfig(rate="heads", limit=2.0, start=0.25),
    },
}
REFUSE_QK_NORM = ("muonclip",)
TOLERANCES: dict[str, float] = {}


class Case(NamedTuple):
    """A chain, its parameters, and its functions compiled once for all tests."""

    chain: optax.GradientTransformationExtraArgs
    params: Any
    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any, Any]]  # (params, state, grads) -> (params, state, updates)
    traces: list[Any]  # a shape of the embedding for each time that `step` was traced


def chain_of(name: str, **changes: Any) -> optax.GradientTransformationExtraArgs:
    """Its chain with nothing else that moves parameters, and no clipping: it sums over all gradients."""
    plain = {"learning_rate": 0.01, "warmup_steps": 0, "decay_fraction": 0.0, "weight_decay": 0.0, "clip_norm": 1e9}
    return build(OptimConfig(**({"optimizer": name} | plain | SETTINGS[name] | changes)), 100)[0]


def step_of(chain: optax.GradientTransformationExtraArgs) -> Callable:
    """One update, which the step of `train/` also tells the loss and the largest logits."""

    def step(params, state, grads):
        L, _, N, _ = params["layers"]["attention"]["query"].shape
        measured = {"loss": jnp.float32(1.0), "max_logit_LN": jnp.ones((L, N), jnp.float32)}
        updates, state = chain.update(grads, state, params, **measured)
        return optax.apply_updates(params, updates), state, updates

    return step


@functools.cache
def case(name: str) -> Case:
    chain, traces = chain_of(name), []

    def step(params, state, grads):
        traces.append(jax.tree.leaves(params)[0].shape)
        return step_of(chain)(params, state, grads)

    return Case(chain, start(name), quickly_compiled(chain.init), quickly_compiled(step), traces)


@functools.cache
def start(name: str) -> Any:
    """Parameters of a transformer; drawing them by its own rules takes seconds."""
    model = dataclasses.replace(EVERYTHING, qk_norm=name not in REFUSE_QK_NORM)
    return jax.tree.map(lambda g: 10 * g, gradients(transformer.abstract(model), 99))


def gradients(params: Any, step: int) -> Any:
    """Random ones, of another size in each layer, so that layers that are mixed up show."""

    def one(path, leaf):
        random = np.random.default_rng([step, *path_name(path).encode()])
        sizes = 0.5 + np.arange(leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1)) % 4
        return np.asarray(0.01 * sizes * random.standard_normal(leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(one, params)


def run(step: Callable, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    for number in steps:
        params, state, _ = step(params, state, gradients(params, number))
    return params, state


def assert_same_bits(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Elementwise, relative to the largest element of the array."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(), err_msg=path_name(path))


every_optimizer = pytest.mark.parametrize("name", SETTINGS)


@every_optimizer
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_one_direction(name, tied):
    chain = case(name).chain
    params = {key: value for key, value in start(name).items() if key != "head" or not tied}
    state = jax.eval_shape(chain.init, params)
    for path in (path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)):
        found = [
            direction
            for direction, inner in state.inner[1].inner_states.items()
            if any(path_name(leaf).endswith(f"/{path}") for leaf, _ in jax.tree_util.tree_leaves_with_path(inner))
        ]
        is_matrix = path.startswith("layers/") and not path.endswith(("_bias", "_norm/scale"))
        assert found == [SETTINGS[name].get("optimizer", name) if is_matrix else "adamw"], path


@every_optimizer
def test_every_parameter_moves_and_the_step_is_traced_once(name):
    _, params, init, step, traces = case(name)
    before = len(traces)
    after, _ = run(step, params, init(params), range(STEPS))
    assert len(traces) <= before + 1  # what comes out of a step may go into the next
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(params), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path_name(path)
        assert np.isfinite(a).all(), path_name(path)
        moved = np.asarray(a != b).reshape(len(a), -1)
        assert moved.mean() > 0.9, path_name(path)
        assert moved.any(1).all(), path_name(path)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_objectives_add_moves_too(name):
    """Every matrix of modules for further tokens, and of projections onto a teacher's features."""
    model = dataclasses.replace(MODEL, multi_token=MultiToken("sequential", 3))
    distill = DistillConfig(teacher="t", features=FeaturesConfig(1.0, ((1, 1), (3, 2))))
    total = build_objective(model, ObjectiveConfig(distill=distill), teacher=MODEL)
    params = gradients(jax.eval_shape(lambda: total.init(0)), 99)
    chain = chain_of(name)
    state, step = quickly_compiled(chain.init)(params), quickly_compiled(step_of(chain))
    after, _ = run(step, params, state, range(2))  # the first step of SOAP moves nothing by it
    for added in ("multi_token", "distill"):
        moved = jax.tree.map(np.not_equal, after[added], params[added])
        for path, found in jax.tree_util.tree_leaves_with_path(moved):
            assert found.reshape(len(found), -1).any(1).all(), path_name(path)


@every_optimizer
def test_a_stack_of_layers_is_updated_as_each_alone(name):
    _, params, init, step, _ = case(name)
    after, _ = run(step, params, init(params), range(STEPS))
    for layer in (0, 3):

        def alone(tree, layer=layer):
            return {"layers": jax.tree.map(lambda a: a[layer : layer + 1], tree["layers"])}

        found = alone(params)
        state = init(found)
        for number in range(STEPS):
            found, state, _ = step(found, state, alone(gradients(params, number)))
        assert_close(found, alone(after), TOLERANCES.get(name, 1e-5))


@every_optimizer
def test_a_checkpoint_continues_to_the_bit(name, tmp_path):
    _, params, init, step, _ = case(name)
    params, state = run(step, params, init(params), range(2))
    saved = TrainState(jnp.int32(2), params, state)
    writer = Checkpoints(tmp_path, keep_last=1)
    writer.save(saved, 2, {})
    writer.close()
    abstract = jax.eval_shape(lambda: saved)
    restored = Checkpoints(tmp_path).restore(abstract, state_shardings(abstract, make_mesh()), 2)
    assert_same_bits(restored, saved)
    unbroken, continued = (run(step, s.params, s.opt_state, range(2, STEPS)) for s in (saved, restored))
    assert_same_bits(continued, unbroken)


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
def test_state_is_float32_whatever_gradients_are(name, dtype, wide):
    """Also where JAX would let float64 in: nothing may ask for it."""
    chain, params, *_ = case(name)
    with jax.enable_x64(wide):
        state = jax.eval_shape(chain.init, params)
        grads = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), params)
        _, after, updates = jax.eval_shape(step_of(chain), params, state, grads)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path_name(path)
        assert a.dtype in (jnp.float32, jnp.int32, jnp.bool), path_name(path)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} <= {jnp.dtype(jnp.float32), jnp.dtype(dtype)}


@every_optimizer
def test_least_squares_decrease(name):
    """|X (W - W*)|^2 over every parameter, X with singular values of 1 to 10, the rate falling to zero."""
    plain = {"qk_clip": QKClipConfig(), "adaptive": AdaptiveConfig()}  # those move queries and keys elsewhere
    chain = chain_of(name, learning_rate=0.02, decay_fraction=1.0, **plain)
    wanted = start(name)
    zeros = jax.tree.map(np.zeros_like, wanted)

    def loss(params):
        def one(p, w):
            difference = (p - w).reshape(-1, p.shape[-2] if p.ndim > 2 else 1, p.shape[-1])
            scales = jnp.geomspace(1.0, 10.0, difference.shape[1])
            return jnp.mean(jnp.square(scales[:, None] * difference))

        return sum(jax.tree.leaves(jax.tree.map(one, params, wanted)))

    def step(carry, _):
        value, grads = jax.value_and_grad(loss)(carry[0])
        return step_of(chain)(*carry, grads)[:2], value

    _, losses = quickly_compiled(lambda p: jax.lax.scan(step, (p, chain.init(p)), None, 100))(zeros)
    quarters = np.asarray(losses).reshape(4, -1).mean(1)
    assert (np.diff(quarters) < 0).all(), quarters
    assert losses[-1] < 0.2 * losses[0], losses[::10]


def on_devices(name: str, mesh: Any, layers: int = 4) -> tuple[Any, Any, float]:
    """Parameters and state after STEPS steps on a mesh, and the part of the state that the fullest device has."""
    chain = chain_of(name)

    def first(tree):
        return {**tree, "layers": jax.tree.map(lambda a: a[:layers], tree["layers"])}

    abstract = jax.eval_shape(lambda: begin(first(start(name)), chain))
    shardings = state_shardings(abstract, mesh)
    state = jax.jit(lambda: begin(first(start(name)), chain), out_shardings=shardings)()
    laid_out = (shardings.params, shardings.opt_state)
    step = jax.jit(
        on_mesh(lambda *arguments: step_of(chain)(*arguments)[:2], mesh),
        in_shardings=(*laid_out, shardings.params),
        out_shardings=laid_out,
    )
    params, opt_state = state.params, state.opt_state
    for number in range(STEPS):
        params, opt_state = step(
            params, opt_state, jax.device_put(first(gradients(start(name), number)), shardings.params)
        )
    leaves = jax.tree.leaves(opt_state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return params, opt_state, held / sum(leaf.nbytes for leaf in leaves)


def compare_devices(names: tuple[str, ...]) -> None:
    """In a process with four devices; one line for each optimiser."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # steps that exchange at once may wait for each other
    for name in names:
        # With fewer layers than devices, the matrices of several parameters are shared out together. Not where they
        # add up a statistic in parts: of one with eigenvalues of 0, last bits decide on eigenvectors.
        for layers, parts in [(4, MeshConfig(fsdp=2, tensor=2)), (1, MeshConfig(replica=4))]:
            one = on_devices(name, make_mesh(MeshConfig(), jax.devices()[:1]), layers)
            four = on_devices(name, make_mesh(parts, jax.devices()), layers)
            try:
                assert_close(four[0], one[0], TOLERANCES.get(name, 1e-5))
                assert layers == 1 or four[2] < 0.35, f"a device holds {four[2]:.0%} of the state"
            except AssertionError as error:
                print(f"{name} of {layers} layers differs:", " ".join(str(error).split()))
            else:
                print(f"{name} of {layers} layers is the same")


@functools.cache
def sharded(names: tuple[str, ...]) -> subprocess.CompletedProcess:
    """A process with four devices and what it says of these optimisers."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent)]
    command = f"import sys; sys.path[:0] = {folders}; import every_test; every_test.compare_devices({names})"
    flags = [f"--{name}={str(value).lower()}" for name, value in QUICKLY.items()]
    flags = " ".join(["--xla_force_host_platform_device_count=4", *flags])
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


QUICKLY_SHARDED = ("soap", "muonclip")
OTHERS = tuple(name for name in SETTINGS if name not in QUICKLY_SHARDED)


@pytest.mark.parametrize("name", [*QUICKLY_SHARDED, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_sharded_equals_unsharded(name):
    done = sharded(OTHERS if name in OTHERS else QUICKLY_SHARDED)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(f"{name} of ")]
    assert lines, done.stdout
    assert all(line.endswith("is the same") for line in lines), lines
