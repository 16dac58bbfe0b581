"""Memory of a step from shapes alone, without a compiler; its time is in `scaling/roofline.py`.

The state is laid out by the rules of training (`train/sharding.py`), with the padding that TPUs give the last two
dimensions. What a layer keeps follows from `model.remat` (`scaling/remat.py`). Temporaries are what is kept,
gradients, copies of weights in the dtype of the computation, and the largest of what the loss, a layer's backward
pass and the gradient of the embedding need at once. `tests/scaling/estimate_test.py` holds it to XLA's own count.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax

from data.config import Stage
from optim.cost import update_cost
from scaling import roofline
from scaling.chips import Topology
from scaling.remat import at_work, kept, padded
from train.run import Run
from train.sharding import batch_parts, state_shardings
from train.state import TrainState
from train.teacher import layout


class Estimate(NamedTuple):
    """Of one device: bytes, and the seconds of a step."""

    parameters: float
    optimizer: float
    teacher: float  # its parameters
    gradients: float  # of a batch or a microbatch
    sums: float  # of gradients over microbatches
    batch: float
    host: float  # in the memory of the host
    saved: float  # kept by the layers for the backward pass
    loss: float  # what the loss needs at once, tables included
    layer: float  # what the backward pass of one layer needs at once
    tables: float  # what the gradient of the embedding needs at once
    modules: float  # what the backward pass of one module needs at once, its loss included
    copies: float  # of weights, in the dtype of the computation
    time: roofline.Seconds

    @property
    def arguments(self) -> float:
        """The state on the device, a teacher, and the batch."""
        return self.parameters + self.optimizer + self.teacher + self.batch

    @property
    def temporaries(self) -> float:
        """All else at the fullest moment."""
        moments = (
            self.saved + self.loss,
            self.saved + self.modules,
            self.saved + self.layer + self.gradients,
            self.tables + self.gradients,
        )
        return self.copies + self.sums + max(moments)

    @property
    def total(self) -> float:
        """Of the memory of the device."""
        return self.arguments + self.temporaries

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.time.total

    def largest(self) -> list[tuple[str, float]]:
        """What fills the memory, the largest first."""
        named = {
            "what the layers keep for the backward pass": self.saved,
            "moments of the optimiser": self.optimizer,
            "parameters": self.parameters,
            "parameters of the teacher": self.teacher,
            "gradients": self.gradients + self.sums,
            "copies of weights": self.copies,
            "tables and hidden states of the loss": max(self.loss, self.tables),
            "the backward pass of one module": self.modules,
            "the backward pass of one layer": self.layer,
        }
        return sorted(((name, size) for name, size in named.items() if size), key=lambda pair: -pair[1])

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        own = {name: getattr(self, name) for name in ("arguments", "temporaries", "total", "seconds")}
        own["time"] = self.time._asdict()
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
    D, modules = model.d_model, model.multi_token.modules
    loss = 2 * table + X * D * (2 * size + 4)
    whole = dataclasses.replace(model, remat="none")  # of a module all is kept, once it has been computed again
    module = X * size * (kept(whole, tensor, 128 if chip.is_tpu else 1) + modules * D) + loss if modules else 0.0
    offloads = run.train.offload_optimizer
    update = update_cost(abstract.params, run.optim, dict(mesh.shape)).busiest
    return Estimate(
        parameters=params,
        optimizer=0.0 if offloads else moments,
        teacher=_teacher(run, mesh, chip.is_tpu),
        gradients=params,
        sums=(params if M > 1 else 0.0) + (moments if offloads else 0.0),  # they come whole; XLA saves half of that
        batch=5 * 4 * X * M,
        host=moments if offloads else 0.0,
        saved=saved,
        loss=loss,
        layer=table * (1 if M == 1 else 2) + X * size * at_work(model, tensor) + one_layer,
        tables=3 * table,
        modules=module,
        copies=wide * layers / 2,
        time=roofline.seconds(run, topology, stage, mesh, params, moments if offloads else 0.0, update),
    )


def _teacher(run: Run, mesh: Any, pads: bool) -> float:
    """Parameters of a teacher that a device holds."""
    if run.teacher is None:
        return 0.0
    laid_out = layout(run.teacher, mesh, run.mesh)
    return _bytes(laid_out, jax.tree.map(lambda own: own.sharding, laid_out), pads)


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
    return padded(length, tile) / length
