"""What `model.remat` means for a plan: what a layer keeps, what it needs at once, and what it computes again."""

import dataclasses

from model.config import ModelConfig, MultiToken

AGAIN = ("full", "dots", "dots_without_batch")  # policies that run attention's kernel again


def kept(model: ModelConfig, tensor: int, lanes: int) -> float:
    """Numbers that a layer keeps of a token on a device, in the dtype of the computation."""
    D, F = model.d_model, model.d_ff / tensor
    N, K = model.num_heads / tensor, max(1.0, model.num_kv_heads / tensor)
    H, wide = model.head_dim, padded(model.head_dim, lanes)
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


def attention_flops(model: ModelConfig, row_length: int, repeats: bool, teacher: ModelConfig | None = None) -> float:
    """FLOPs a token of attention's kernels, those included that the backward pass runs again: of modules all.

    `repeats` says whether it does so with those of the trunk's layers. A teacher's run forward alone.
    """
    trunk = dataclasses.replace(model, multi_token=MultiToken()).attention_flops_per_token(row_length)
    modules = model.attention_flops_per_token(row_length) - trunk
    taught = teacher.attention_flops_per_token(row_length) / 3 if teacher else 0.0
    return trunk * (4 / 3 if repeats else 1) + modules * 4 / 3 + taught


def padded(length: float, tile: int) -> float:
    """A length in whole tiles."""
    return -(-length // tile) * tile
