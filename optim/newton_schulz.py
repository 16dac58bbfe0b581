"""Matrices orthogonalised by Newton-Schulz iteration: named coefficients, and what each expects of its input.

All singular values of a matrix go towards 1, its singular vectors stay: U S V^T becomes nearly U V^T.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from core.errors import UserError, suggest
from kernels.newton_schulz.api import newton_schulz

Row = tuple[float, float, float]


class Coefficients(NamedTuple):
    """(a, b, c) of every step, and the norm that they begin with: |X| * safety + epsilon, Frobenius."""

    rows: tuple[Row, ...]
    safety: float = 1.0
    epsilon: float = 1e-7

    @property
    def alike(self) -> bool:
        """Whether every step is the same, so that there may be any number."""
        return len(set(self.rows)) == 1


COEFFICIENTS = {
    # Keller Jordan's: steep at 0; values above 0.01 of the norm end in 0.68..1.13, not at 1.
    "standard": Coefficients(((3.4445, -4.7750, 2.0315),) * 5),
    # leloykun's, a row a step, also of Dion and Optax: 0.98..1.03.
    "per_step": Coefficients(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        )
    ),
    # Amsel et al. 2025 (arXiv 2505.16932), the least error at the worst singular value, for 5 steps with safety 2e-2
    # and cushion 2, as modded-nanogpt has them: 0.86..1.14, down to 0.002 of the norm.
    "polar_express": Coefficients(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        safety=1.02,
        epsilon=1e-6,
    ),
    # Converges to 1, in twelve steps to float32's accuracy from 0.01 of the norm on.
    "convergent": Coefficients(((2.0, -1.5, 0.5),) * 12),
}


def coefficients(name: str, steps: int = 0) -> Coefficients:
    """A set with so many steps; 0 is as many as it is made of. More than those repeat the last."""
    if name not in COEFFICIENTS:
        raise UserError(f"config optim.muon.coefficients={name!r} is not known{suggest(name, COEFFICIENTS)}")
    own = COEFFICIENTS[name]
    if 0 < steps < len(own.rows) and not own.alike:
        least = len(own.rows)
        raise UserError(
            f"config optim.muon.steps={steps}: {name} is made of {least} steps that need each other; give {least} or "
            "more, or 0"
        )
    steps = steps or len(own.rows)
    return own._replace(rows=(own.rows + own.rows[-1:] * steps)[:steps])


def orthogonalise(x_SRC: jax.Array, own: Coefficients, *, implementation: str = "auto") -> jax.Array:
    """Every matrix [..., R, C], in its dtype, float32 or bfloat16; zeros stay zeros.

    The norm is taken in float32. Transposed matrices give the transposed result.
    """
    wide_SRC = x_SRC.astype(jnp.float32)
    norm_S11 = jnp.sqrt(jnp.sum(jnp.square(wide_SRC), (-2, -1), keepdims=True))
    x_SRC = (wide_SRC / (norm_S11 * own.safety + own.epsilon)).astype(x_SRC.dtype)
    return newton_schulz(x_SRC, own.rows, implementation=implementation)
