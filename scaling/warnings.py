"""What a compiled step should not exchange: all parameters at once, logits, hidden states of other devices."""

import math

from data.config import Stage
from model.config import ModelConfig
from scaling.step_time import Collective

SMALL = 1 << 20  # bytes; scalars and norms may go anywhere
UPDATES = "/owners/shard_map/all_gather"  # of optim/owners.py: its part of the matrices that other replicas computed


def unexpected(
    collectives: tuple[Collective, ...], model: ModelConfig, stage: Stage, parts: int, context: int, tensor: int
) -> list[str]:
    """One line for each all-gather of something else than one layer's weights, a table, or keys and values.

    By the numbers of an array: where a row is as long as a hidden state is wide (Llama 2: 4,096), a row of logits
    looks like a table and passes; tests/scaling/estimate_test.py compiles it with rows of another length. On v4 XLA
    writes gathers as all-reduces of arrays that are zero but for a device's part. Weights there look like sums of
    their gradients, and pass; logits are never summed, and hidden states only over `tensor`.
    `parts` is into how many the rows are split, `context` the tokens of a row, `tensor` heads and features.
    """
    D, F, V, H = model.d_model, model.d_ff, model.vocab_size, model.head_dim
    N, K = model.num_heads, model.num_kv_heads
    whole = {"query": D * N * H, "key or value": D * K * H, "feed-forward": D * F, "table": V * D}
    split = {name: {size, size // tensor} for name, size in whole.items()}
    tokens = stage.rows * stage.row_length // parts
    lines = []
    for one in collectives:
        if one.opcode not in ("all-gather", "all-reduce") or one.op_name.endswith(UPDATES):
            continue
        summed = one.opcode == "all-reduce"
        for shape in one.shapes:
            size = math.prod(shape)
            rows = stage.row_length != D and {stage.row_length, tokens} & set(shape)
            part = not rows and whole["table"] % size == 0  # of the gradient of a table, summed on some devices
            if 2 * size <= SMALL or part or any(size in sizes for sizes in split.values()):
                continue
            what = _what(shape, size, split, model, stage, tokens, context if one.devices == context else 1)
            if summed and not (what == "logits" or (what == "hidden states" and tensor == 1)):
                continue
            if what:
                lines.append(
                    f"unexpected {one.opcode} of {what}: {'x'.join(map(str, shape))}, {one.times:,} times a step"
                )
    return sorted(set(lines))


def _what(shape, size: int, split, model: ModelConfig, stage: Stage, tokens: int, context: int) -> str | None:
    """What an array is that is no weight; None for what may be gathered."""
    V, T = model.vocab_size, stage.row_length
    for name, sizes in split.items():
        if any(size == model.num_layers * own for own in sizes):
            return f"all layers' {name} weights at once"
    if any(length in (V, V // 2, V // 4) for length in shape):
        return "logits"
    if context > 1 and size % (model.head_dim * T) == 0:
        return None  # keys and values of a row
    if any(length in (T, tokens) or length % T == 0 for length in shape):
        return "hidden states"
    return "something that is no weight"
