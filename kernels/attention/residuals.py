"""What the backward pass needs of the forward pass, by names that `jax.checkpoint` policies know."""

import jax
from jax.ad_checkpoint import checkpoint_name

OUT, LSE = "attention_out", "attention_lse"


def named(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where a policy keeps both, the forward kernel does not run again."""
    return checkpoint_name(out, OUT), checkpoint_name(lse, LSE)
