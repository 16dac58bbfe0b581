"""The shape of a transformer, with its parameter and FLOP counts."""

from dataclasses import dataclass
from typing import Literal

from core.config import require


@dataclass(frozen=True)
class ModelConfig:
    """A SmolLM3-shaped decoder: `config.model`.

    Grouped-query attention, RoPE with none on every `no_rope_every`-th layer, SwiGLU, RMSNorm before each branch,
    no biases, tied embeddings.
    """

    vocab_size: int  # V
    num_layers: int  # L
    d_model: int  # D
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    d_ff: int  # F
    no_rope_every: int = 4  # layers 4, 8, ... carry no position; 0 for RoPE everywhere
    rope_theta: float = 50_000.0
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    remat: Literal["none", "full"] = "none"  # full recomputes each layer in the backward pass

    def __post_init__(self):
        sizes = ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
        for name in sizes:
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}",
        )
        require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even for RoPE to rotate pairs")
        require(self.no_rope_every >= 0, f"no_rope_every={self.no_rope_every} must be 0 or more")

    @property
    def uses_rope(self) -> tuple[bool, ...]:
        """For each layer, whether it rotates queries and keys."""
        every = self.no_rope_every
        return tuple(not (every and (layer + 1) % every == 0) for layer in range(self.num_layers))

    @property
    def layer_matmul_parameters(self) -> int:
        """Parameters of one layer that multiply activations."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.d_model * self.d_ff

    @property
    def num_parameters(self) -> int:
        """All parameters; the tied embedding counts once."""
        norms = (2 * self.num_layers + 1) * self.d_model
        return self.vocab_size * self.d_model + self.num_layers * self.layer_matmul_parameters + norms

    def flops_per_token(self, row_length: int) -> float:
        """Training FLOPs a token, forward and backward: 6 N + 6 L N_heads H T.

        N counts the parameters of matrix products, the output head included; the second term is causal attention,
        which needs half of the full T x T products. Documents in a row shorten it further, which is not counted.
        """
        matmul = self.num_layers * self.layer_matmul_parameters + self.vocab_size * self.d_model
        return 6 * matmul + 6 * self.num_layers * self.num_heads * self.head_dim * row_length
