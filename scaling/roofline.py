"""Seconds of a step from shapes alone: products at a share of the peak, all else by bytes over a bandwidth.

What is fitted, on seven plans that XLA of libtpu 0.0.51 compiled (`tests/scaling/compiled.json` has them, and
`tests/scaling/estimate_test.py` what is left over), are two numbers, PASSES and NARROW. The shares of the peak are
what the compiler's cycles say of single products in those programs; which sums and gathers hide was read from them.
"""

from typing import Any, NamedTuple

from data.config import Stage
from model.config import ModelConfig
from scaling.chips import Chip, Topology
from scaling.remat import AGAIN, attention_flops, kept, padded, recomputed
from scaling.step_time import ATTENTION_SHARE, KERNEL_SHARE, LOSS, UPDATE_PRODUCTS, slowest
from train.run import Run
from train.step import V5E

LANES = 128  # of a TPU's registers, which a last dimension fills whole
# How often a token's numbers of a layer (residual stream, feed-forward features, and heads turned between layouts)
# pass between HBM and the chip in a step, beside what is kept, which is written once and read once.
PASSES = 16
# Where a part of a parameter has fewer rows than this, XLA pads what it sums (SmolLM3-3B in 64 parts: 0.15 s of 1.10)
# or multiplies by a part at a time, which may be far worse: Baguettotron, 576 wide, takes 4 to 5 s in 16 parts.
ROWS, NARROW = 64, 0.15  # the least that it costs, of what is computed
ACCUMULATION, UPDATE, TABLE = 4, 7, 3  # times that a microbatch's gradients, the state, a table's gradient pass


class Habits(NamedTuple):
    """What the compiler makes of a step for a kind of device."""

    share: float  # of the peak that products reach
    memory: bool  # whether what is bound by memory is charged on its own, or is in that share
    hides: bool  # whether gathers of weights travel while products run
    trips: int  # of a gather or a sum of gradients: 2 where both are all-reduces


def habits(chip: Chip) -> Habits:
    """Of the devices: v5e has asynchronous collectives and more VMEM for a fusion (`train/step.py: OVERLAP`)."""
    if not chip.is_tpu:
        return Habits(0.6, memory=False, hides=True, trips=1)  # of GPUs nothing was compiled: an assumption
    if chip.kind == V5E:
        return Habits(0.97, memory=True, hides=True, trips=1)
    return Habits(0.76, memory=True, hides=False, trips=2 if chip.kind == "TPU v4" else 1)


class Seconds(NamedTuple):
    """Of a step; what is hidden is no part of the sum."""

    compute: float
    kernels: dict[str, float]  # of the loss, on TPUs, and of the optimiser
    attention: float
    exposed: float  # collectives that the device waits for
    hidden: float
    between_slices: float  # of both, over DCN
    offload: float  # the optimiser's moments from the host and back
    share: float  # of the peak, that products reach

    @property
    def outside_attention(self) -> float:
        """All but attention."""
        return self.compute + sum(self.kernels.values()) + self.exposed + self.offload

    @property
    def total(self) -> float:
        """Of a step."""
        return self.outside_attention + self.attention


def seconds(
    run: Run, topology: Topology, stage: Stage, mesh: Any, params: float, offloaded: float, update: float = 0.0
) -> Seconds:
    """Of a step; `params` and `offloaded` are bytes of a device: parameters, moments in the memory of the host.

    `update` is the FLOPs of the optimiser's products on the device that has most.
    """
    model, chip, own = run.model, topology.chip, habits(topology.chip)
    tensor = mesh.shape["tensor"]
    tokens = stage.rows * stage.row_length / topology.devices
    layers = 6 * model.stacked_matmul_parameters + 2 * model.num_layers * recomputed(model)
    layers += 2 * model.multi_token.modules * model.module_matmul_parameters  # whose forward passes all come again
    objective = run.learns
    product = 2 * model.vocab_size * model.d_model
    head = ((objective.passes + objective.repeated_passes) * product, 2 * objective.passes * product)
    kernels = {}
    if own.memory:  # the loss is kernels, charged as such
        kernels, head = {name: tokens * of / (KERNEL_SHARE * chip.flops) for name, of in zip(LOSS, head)}, ()
    taught = objective.teacher_flops_per_token(stage.row_length)
    compute = tokens * (layers + sum(head) + taught) / (own.share * chip.flops)
    if own.memory:
        moved = memory_traffic(model, tokens * tensor, tensor) + state_traffic(run, tensor, params)
        compute += moved / chip.bandwidth
        splits = mesh.shape["fsdp"] * mesh.shape["context"]
        compute *= 1 + NARROW * (splits > 1 and model.d_model / splits < ROWS)
    if update:
        kernels |= {UPDATE_PRODUCTS: update / (KERNEL_SHARE * chip.flops)}
    attention = attention_flops(model, stage.row_length, model.remat in AGAIN)  # a teacher's is in `taught`
    attention *= tokens * slowest(mesh.shape["context"]) / (ATTENTION_SHARE * chip.flops)
    exposed, hidden, between = collectives(run, topology, tokens, mesh, compute)
    return Seconds(
        compute=compute,
        kernels=kernels,
        attention=attention,
        exposed=exposed,
        hidden=hidden,
        between_slices=between,
        offload=2 * offloaded / chip.host_link,
        share=own.share,
    )


def memory_traffic(model: ModelConfig, tokens: float, tensor: int) -> float:
    """Bytes between HBM and a device of `tokens`, in all layers, forward and backward."""
    size = 2 if model.dtype == "bfloat16" else 4
    heads = (model.num_heads + 2 * model.num_kv_heads) / tensor * padded(model.head_dim, LANES)
    width = padded(model.d_model, LANES) + model.d_ff / tensor + 2 * heads
    again = 4 / 3 if model.remat == "full" else 1  # the forward pass is a third of it
    numbers = model.num_layers * (PASSES * again * width + 2 * kept(model, tensor, LANES))
    numbers += model.multi_token.modules * (PASSES * 4 / 3 * width + 2 * model.d_model)
    return tokens * size * numbers


def state_traffic(run: Run, tensor: int, params: float) -> float:
    """Bytes of gradients added, parameters updated, and float32 gradients of the table."""
    M = run.train.microbatches
    table = 4 * run.model.vocab_size * run.model.d_model / tensor
    return params * (UPDATE + ACCUMULATION * M * (M > 1)) + TABLE * M * table


def collectives(run: Run, topology: Topology, tokens: float, mesh: Any, compute: float) -> tuple[float, float, float]:
    """Seconds exposed and hidden, and those over DCN among them.

    Weights are gathered for each pass of each microbatch, and their gradients summed, in the dtype of the
    computation, the table's in float32 from both its ends. Between slices each device sends its part of the sums:
    of S slices 2 (S - 1) / S of its bytes, while it computes.
    """
    if topology.devices == 1:
        return 0.0, 0.0, 0.0
    model, chip, M, own = run.model, topology.chip, run.train.microbatches, habits(topology.chip)
    axes, size = mesh.shape, 2 if run.model.dtype == "bfloat16" else 4
    tensor, context, splits = axes["tensor"], axes["context"], axes["fsdp"] * axes["context"]
    speed = chip.ici if chip.is_tpu or topology.devices <= chip.per_host else chip.dcn
    layers, table = model.stacked_matmul_parameters, model.vocab_size * model.d_model
    weights, summed = size * (layers + table) / tensor, (size * layers + 2 * 4 * table) / tensor
    sums = own.trips * summed * M * (splits > 1) + 2 * summed * M / splits * (axes["replica"] > topology.slices)
    gathers = own.trips * 2 * weights * M * (splits > 1)
    X = tokens * tensor  # of a device
    exchanged = (
        4 * 2 * size * X * model.d_model * model.num_layers * (tensor > 1)
    )  # all-reduces, two a layer and pass
    keys = 2 * model.num_kv_heads * model.head_dim / tensor * X * context * model.num_layers
    exchanged += keys * (2 * size + 4) * (context > 1)  # gathered in both passes, gradients summed in float32
    between = 2 * (1 - 1 / topology.slices) * summed * tensor * M / topology.devices_per_slice / chip.dcn
    exposed, hidden = (sums + exchanged) / speed, gathers / speed
    if not own.hides:
        exposed, hidden = exposed + hidden, 0.0
    waits = max(0.0, hidden + between - compute)
    return exposed + waits, hidden + between - waits, between
