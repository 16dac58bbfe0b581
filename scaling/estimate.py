"""Memory and time of a step from shapes alone, without a compiler.

The state is laid out by the rules of training (`train/sharding.py`), with the padding that TPUs give the last two
dimensions. What a layer keeps follows from `model.remat`. Temporaries are what is kept, gradients, copies of weights
in the dtype of the computation, and the largest of what the loss, a layer's backward pass and the gradient of the
embedding need at once. `tests/scaling/estimate_test.py` holds it to XLA's own count.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax

from data.config import Stage
from model.config import ModelConfig
from optim.cost import update_cost
from scaling.chips import Topology
from scaling.step_time import ATTENTION_SHARE, attention_flops, slowest
from train.run import Run
from train.sharding import batch_parts, state_shardings
from train.state import TrainState

SHARE = {True: 0.75, False: 0.6}  # of the peak that a step's products reach, all else included: TPU (compiled), GPU
GRADIENT = 4  # bytes, float32


class Estimate(NamedTuple):
    """Of one device: bytes, and seconds of a step."""

    parameters: float
    optimizer: float
    gradients: float  # of a batch or a microbatch
    sums: float  # of gradients over microbatches
    batch: float
    host: float  # in the memory of the host
    saved: float  # kept by the layers for the backward pass
    loss: float  # what the loss needs at once, tables included
    layer: float  # what the backward pass of one layer needs at once
    tables: float  # what the gradient of the embedding needs at once
    copies: float  # of weights, in the dtype of the computation
    compute: float
    attention: float
    collectives: float  # those that nothing hides
    between_slices: float
    share: float  # of the peak, assumed

    @property
    def arguments(self) -> float:
        """The state on the device, and the batch."""
        return self.parameters + self.optimizer + self.batch

    @property
    def temporaries(self) -> float:
        """All else at the fullest moment."""
        moments = (self.saved + self.loss, self.saved + self.layer + self.gradients, self.tables + self.gradients)
        return self.copies + self.sums + max(moments)

    @property
    def total(self) -> float:
        """Of the memory of the device."""
        return self.arguments + self.temporaries

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.attention + self.collectives + self.between_slices

    def largest(self) -> list[tuple[str, float]]:
        """What fills the memory, the largest first."""
        named = {
            "what the layers keep for the backward pass": self.saved,
            "moments of the optimiser": self.optimizer,
            "parameters": self.parameters,
            "gradients": self.gradients + self.sums,
            "copies of weights": self.copies,
            "tables and hidden states of the loss": max(self.loss, self.tables),
            "the backward pass of one layer": self.layer,
        }
        return sorted(((name, size) for name, size in named.items() if size), key=lambda pair: -pair[1])

    def times(self) -> dict[str, Any]:
        """As a compiled step would tell them."""
        exposed = self.collectives + self.between_slices
        own = {"compute": self.compute, "kernels": {}, "exposed": exposed, "hidden": 0.0, "attention": self.attention}
        return own | {"outside_attention": self.compute + exposed, "total": self.seconds}

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        own = {name: getattr(self, name) for name in ("arguments", "temporaries", "total", "seconds")}
        return self._asdict() | own | {"largest": [list(pair) for pair in self.largest()]}


def estimate(run: Run, topology: Topology, stage: Stage, abstract: TrainState, mesh: Any) -> Estimate:
    """Of a stage of a run whose state has the shapes of `abstract`, on an abstract `mesh`."""
    model, chip, M = run.model, topology.chip, run.train.microbatches
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    X = stage.rows * stage.row_length / batch_parts(mesh) / context / M  # tokens that a device has at once
    size = 2 if model.dtype == "bfloat16" else 4
    shardings = state_shardings(abstract, mesh, run.mesh)
    params = _bytes(abstract.params, shardings.params, chip.is_tpu)
    moments = _bytes(abstract.opt_state, shardings.opt_state, chip.is_tpu)
    layers = _bytes(abstract.params["layers"], shardings.params["layers"], chip.is_tpu)
    table = model.vocab_size * model.d_model * size / tensor
    wide = 1 if size == 2 else 0
    saved = model.num_layers * X * size * kept(model, tensor, 128 if chip.is_tpu else 1)
    one_layer = model.layer_matmul_parameters * size / tensor
    D = model.d_model
    offloads = run.train.offload_optimizer
    return Estimate(
        parameters=params,
        optimizer=0.0 if offloads else moments,
        gradients=params,
        sums=(params if M > 1 else 0.0) + (moments if offloads else 0.0),
        batch=5 * 4 * X * M,
        host=moments if offloads else 0.0,
        saved=saved,
        loss=2 * table + X * D * (2 * size + 4),
        layer=table * (1 if M == 1 else 2) + X * size * at_work(model, tensor) + one_layer,
        tables=3 * table,
        copies=wide * layers / 2,
        **_times(run, topology, stage, mesh, update_cost(abstract.params, run.optim, dict(mesh.shape)).busiest),
    )


def kept(model: ModelConfig, tensor: int, lanes: int) -> float:
    """Numbers that a layer keeps of a token on a device, in the dtype of the computation."""
    D, F = model.d_model, model.d_ff / tensor
    N, K = model.num_heads / tensor, max(1.0, model.num_kv_heads / tensor)
    H, wide = model.head_dim, -(-model.head_dim // lanes) * lanes
    gates = 1 if model.feed_forward == "relu2" else 2
    attention = N * H + N * wide + 2 * K * H + 2 * N  # queries, outputs, keys and values, and a float32 sum a head
    return {
        "full": D,
        "attention": D + attention,
        "branches": D + attention + gates * F,
        "dots": 3 * D + (N + 2 * K) * H + gates * F,
        "dots_without_batch": 3 * D + (N + 2 * K) * H + gates * F,
        "none": 15 * D + attention + (3 + 4 * gates) * F,  # all that is float32 within norms and gates, too
    }[model.remat]


def at_work(model: ModelConfig, tensor: int) -> float:
    """Numbers of a token in the backward pass of a layer beside those that were kept, as XLA:TPU schedules it."""
    D, F = model.d_model, model.d_ff / tensor
    return {"full": 3 * F + 3 * D, "attention": 3 * F + D, "branches": F + D}.get(model.remat, 3 * F)


def recomputed(model: ModelConfig) -> float:
    """Parameters of a layer whose product the backward pass computes again; the last one's result nobody needs."""
    D, F = model.d_model, model.d_ff
    output = D * model.num_heads * model.head_dim
    gates = (1 if model.feed_forward == "relu2" else 2) * D * F
    inputs = D * model.head_dim * (model.num_heads + 2 * model.num_kv_heads)
    return {"full": inputs + output + gates, "attention": output + gates, "branches": output}.get(model.remat, 0.0)


def _bytes(abstract: Any, shardings: Any, pads: bool) -> float:
    """Of the part of a tree that a device holds; on TPUs in tiles of 8 by 128, along the dimensions that fit best."""

    def one(array: jax.ShapeDtypeStruct, sharding: Any) -> float:
        shape = sharding.shard_shape(array.shape)
        size = math.prod(shape) * array.dtype.itemsize
        if not pads or not shape:
            return size
        pairs = itertools.permutations(shape, 2) if len(shape) > 1 else [(1, shape[0])]
        return size * min(_padded(rows, 8) * _padded(lanes, 128) for rows, lanes in pairs)

    return float(sum(jax.tree.leaves(jax.tree.map(one, abstract, shardings))))


def _padded(length: int, tile: int) -> float:
    """How many times as long a dimension is in whole tiles; few rows have smaller ones."""
    if tile == 8 and length < 8:
        tile = next(rows for rows in (1, 2, 4, 8) if length <= rows)
    return -(-length // tile) * tile / length


def _times(run: Run, topology: Topology, stage: Stage, mesh: Any, update: float) -> dict[str, float]:
    """Seconds: products at a share of the peak, attention at its own, collectives by bytes.

    `update` is the FLOPs of the optimiser's products on the device that has most.

    Gathers of weights are hidden behind products; sums of gradients and what tensor and context exchange are not.
    """
    model, chip, M = run.model, topology.chip, run.train.microbatches
    tensor, context, replica = (mesh.shape[axis] for axis in ("tensor", "context", "replica"))
    tokens = stage.rows * stage.row_length / topology.devices
    share = SHARE[chip.is_tpu]
    layers = model.num_layers * model.layer_matmul_parameters
    products = 6 * (layers + model.vocab_size * model.d_model) + 2 * model.num_layers * recomputed(model)
    again = 4 / 3 if model.remat in ("full", "dots", "dots_without_batch") else 1
    attention = (
        tokens * attention_flops(model, stage.row_length) * slowest(context) * again / (ATTENTION_SHARE * chip.flops)
    )
    compute = (tokens * products + update) / (share * chip.flops)
    if topology.devices == 1:
        return {"compute": compute, "attention": attention, "collectives": 0.0, "between_slices": 0.0, "share": share}
    splits = mesh.shape["fsdp"] * context  # of parameters
    speed = chip.ici if chip.is_tpu or topology.devices <= chip.per_host else chip.dcn
    weights = 2 * (layers + model.vocab_size * model.d_model) / tensor
    sums = weights * M * (splits > 1) + 2 * weights * M / splits * (replica > topology.slices)
    gathers = 2 * weights * M * (splits > 1)
    X = tokens * tensor  # tokens of a device
    exchanged = (
        4 * 2 * 2 * X * model.d_model * model.num_layers * (tensor > 1)
    )  # an all-reduce twice a layer and pass
    keys = 2 * model.num_kv_heads * model.head_dim / tensor * X * context * model.num_layers
    exchanged += keys * (2 + 2 + 4) * (context > 1)
    waits = (sums + exchanged) / speed
    waits += max(0.0, gathers / speed - compute)
    apart = 2 * weights / splits * (1 - 1 / topology.slices) / chip.dcn * 2 if topology.slices > 1 else 0.0
    return {
        "compute": compute,
        "attention": attention,
        "collectives": waits,
        "between_slices": apart,
        "share": share,
    }
