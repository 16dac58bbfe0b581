"""Rotary positions (Su et al. 2021) and the ways to stretch them over a longer context.

Suffix R: the H/2 pairs of features that rotate together, each by its own frequency.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig


class Rotation(NamedTuple):
    """What a layer does to its queries and keys (`kernels/rope`)."""

    cos_BTR: jax.Array
    sin_BTR: jax.Array
    active: jax.Array  # bool, whether this layer rotates at all


def rotary_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians a position of every pair [R], and the factor of cosine and sine (1 but for YaRN)."""
    H, scaling = config.head_dim, config.rope_scaling
    theta = config.rope_theta
    if scaling.ntk_factor != 1:
        theta *= scaling.ntk_factor ** (H / (H - 2))  # so that the slowest pair is interpolated, the fastest not
    plain_R = _plain(theta, H)
    match scaling.kind:
        case "none":
            return plain_R, 1.0
        case "interpolation":
            return plain_R / np.float32(scaling.factor), 1.0
        case "llama3":
            return _llama3(config, plain_R), 1.0
        case "ntk_by_parts":
            return _by_parts(config, theta, plain_R), 1.0
        case "yarn":
            factor = scaling.attention_factor
            return _by_parts(config, theta, plain_R), 0.1 * math.log(scaling.factor) + 1 if factor is None else factor
    raise AssertionError(scaling.kind)


def _plain(theta: float, H: int) -> np.ndarray:
    """1 / theta^(2r / H), rounded to float32 where PyTorch rounds: at position 64k one bit is 0.004 radians."""
    exponent_R = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
    return np.float32(1) / np.power(theta, exponent_R.astype(np.float64)).astype(np.float32)


def _by_parts(config: ModelConfig, theta: float, plain_R: np.ndarray) -> np.ndarray:
    """Pairs that turn often within the old context stay, slow ones are interpolated, with a ramp (YaRN, 3.2)."""
    scaling, H = config.rope_scaling, config.head_dim

    def pair_turning(turns: float) -> float:
        return H * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), H - 1)
    ramp_R = (np.arange(H // 2, dtype=np.float32) - low) / np.float32(high - low if high != low else 0.001)
    stretched_R = np.clip(ramp_R, 0, 1)
    return plain_R / np.float32(scaling.factor) * stretched_R + plain_R * (1 - stretched_R)


def _llama3(config: ModelConfig, plain_R: np.ndarray) -> np.ndarray:
    """As by parts, with the ramp over the number of turns instead of the index (Llama 3.1)."""
    scaling = config.rope_scaling
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns_R = scaling.original_length * plain_R / np.float32(2 * np.pi)
    kept_R = np.clip((turns_R - low) / (high - low), 0, 1).astype(np.float32)
    return plain_R / np.float32(scaling.factor) * (1 - kept_R) + plain_R * kept_R


def rotary_table(positions_BT: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles, each [B, T, R] in float32."""
    frequency_R, factor = rotary_frequencies(config)
    angle_BTR = positions_BT[:, :, None].astype(jnp.float32) * frequency_R
    cos_BTR, sin_BTR = jnp.cos(angle_BTR), jnp.sin(angle_BTR)
    return (cos_BTR, sin_BTR) if factor == 1 else (cos_BTR * factor, sin_BTR * factor)
