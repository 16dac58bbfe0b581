"""The shape of a transformer, with its parameter and FLOP counts."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from core.config import require

Implementation = Literal["auto", "reference", "xla", "tpu", "gpu", "tpu_interpret", "gpu_interpret"]
MAX_LAYERS = 10_000  # some work is done layer by layer, so a config from elsewhere must not say a billion


def _require_finite(config: Any) -> None:
    """NaN fails no comparison that would refuse it, and JSON can say Infinity."""
    for name, value in vars(config).items():
        require(not isinstance(value, float) or math.isfinite(value), f"{name}={value} must be a finite number")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context of training: `config.model.rope_scaling`.

    NTK-aware scaling is `ntk_factor` alone; interpolation with it is `kind="interpolation"` and both factors. A plain
    change of base is `config.model.rope_theta`. `model/position.py` has the formulas.
    """

    kind: Literal["none", "interpolation", "ntk_by_parts", "yarn", "llama3"] = "none"
    factor: float = 1.0  # new context / old context
    ntk_factor: float = 1.0  # NTK-aware: theta becomes theta * ntk_factor^(H / (H - 2))
    original_length: int = 0  # the old context, which ntk_by_parts, yarn and llama3 need
    beta_fast: float = 32.0  # turns within the old context from which on nothing is stretched (ntk_by_parts, yarn)
    beta_slow: float = 1.0  # turns up to which all is
    low_frequency_factor: float = 1.0  # the same two of llama3
    high_frequency_factor: float = 4.0
    attention_factor: float | None = None  # yarn: on cosine and sine; None is 0.1 ln(factor) + 1

    def __post_init__(self):
        _require_finite(self)
        for name in ("factor", "ntk_factor"):
            require(getattr(self, name) >= 1, f"rope_scaling: {name}={getattr(self, name)} must be 1 or more")
        if self.kind == "none":
            require(self.factor == 1, f"rope_scaling: factor={self.factor} needs a kind")
        if self.kind in ("ntk_by_parts", "yarn", "llama3"):
            require(
                self.original_length > 0,
                f"rope_scaling: {self.kind} needs original_length, the context that the model was trained with",
            )
        require(self.beta_fast > self.beta_slow > 0, "rope_scaling: beta_fast must be above beta_slow, both positive")
        require(
            self.high_frequency_factor > self.low_frequency_factor > 0,
            "rope_scaling: high_frequency_factor must be above low_frequency_factor, both positive",
        )
        require(
            self.attention_factor is None or (self.kind == "yarn" and self.attention_factor > 0),
            "rope_scaling: attention_factor belongs to yarn, and is positive",
        )


@dataclass(frozen=True)
class Kernels:
    """Which implementation of an op runs: `config.model.kernels`. The result is the same but for rounding.

    auto takes the platform's own kernel; *_interpret are the kernels of other platforms, step by step and slowly.
    """

    attention: Implementation = "auto"
    cross_entropy: Implementation = "auto"
    rope: Literal["auto", "reference", "xla", "tpu", "gpu", "tpu_interpret"] = "auto"


@dataclass(frozen=True)
class MultiToken:
    """Modules that predict tokens beyond the next, each one block: `config.model.multi_token`.

    parallel (Gloeckle et al. 2024) reads what the trunk's last layer gave; sequential (DeepSeek-V3) what the module
    before it gave and the embedding of the token that this one was to predict. All share embedding and output layer.
    """

    kind: Literal["none", "parallel", "sequential"] = "none"
    tokens: int = 1  # M, the next one, which the trunk predicts, included

    def __post_init__(self):
        if self.kind == "none":
            require(self.tokens == 1, f"tokens={self.tokens} needs a kind, parallel or sequential")
        else:
            require(self.tokens > 1, f"tokens={self.tokens} must be 2 or more with kind={self.kind}")

    @property
    def modules(self) -> int:
        """One for each token beyond the next."""
        return self.tokens - 1


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: `config.model`. The defaults are SmolLM3's; `model/presets.py` has whole models."""

    vocab_size: int  # V
    num_layers: int  # L
    d_model: int  # D
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    d_ff: int  # F

    # Positions
    no_rope_every: int = 4  # layers 4, 8, ... carry no position; 0 for RoPE everywhere
    rope_theta: float = 50_000.0
    rope_pairs: Literal["half_split", "interleaved"] = "half_split"  # i with i + H/2, or 2i with 2i + 1
    rope_scaling: RopeScaling = RopeScaling()

    # Attention
    qk_norm: bool = False  # RMSNorm of every query and key head, before the rotation
    qkv_bias: bool = False
    output_bias: bool = False
    attention_scale: float | None = None  # None is 1 / sqrt(H)
    attention_soft_cap: float | None = None  # logits become cap * tanh(logits / cap)
    sliding_window: int = 0  # tokens that a token sees, itself included; 0 is all of its document
    global_every: int = 0  # with a sliding window, layers n, 2n, ... see all of the document; 0 is none

    # Feed-forward
    feed_forward: Literal["swiglu", "geglu", "relu2"] = "swiglu"  # GELU by its tanh approximation
    feed_forward_bias: bool = False

    # Norms
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["pre", "pre_post"] = "pre"  # pre_post also normalises what each branch adds
    norm_epsilon: float = 1e-6
    norm_plus_one: bool = False  # scales are stored as their difference from 1, as Gemma does

    # Embedding and head
    tied_head: bool = True  # the embedding is also the output layer
    embedding_scale: float = 1.0  # Gemma: sqrt(D)
    final_soft_cap: float | None = None  # of the output logits

    multi_token: MultiToken = MultiToken()

    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; parameters are float32
    # What the backward pass computes again: nothing; whole layers; all but what attention reads and gives; all but
    # that and both branches of the feed-forward layer, which leaves norms and what is computed element by element;
    # what is not a matrix product (without_batch: nor attention, whose products have batch axes).
    remat: Literal["none", "full", "attention", "branches", "dots", "dots_without_batch"] = "none"
    kernels: Kernels = Kernels()

    def __post_init__(self):
        _require_finite(self)
        for name in ("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}",
        )
        require(self.head_dim % 2 == 0, f"head_dim={self.head_dim} must be even for RoPE to rotate pairs")
        require(
            self.head_dim > 2 or self.rope_scaling.ntk_factor == 1,
            f"head_dim={self.head_dim} is too small for rope_scaling.ntk_factor",
        )
        for name in ("no_rope_every", "sliding_window", "global_every"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must be 0 or more")
        require(not self.global_every or self.sliding_window > 0, "global_every needs a sliding_window")
        require(self.num_layers <= MAX_LAYERS, f"num_layers={self.num_layers} is above {MAX_LAYERS}")
        M = self.multi_token.tokens
        require(M <= MAX_LAYERS, f"multi_token.tokens={M} is above {MAX_LAYERS}")
        require(self.rope_theta > 1, f"rope_theta={self.rope_theta} must be above 1")
        for name in ("norm_epsilon", "embedding_scale"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(self.init_std >= 0, f"init_std={self.init_std} must be 0 or more")
        for name in ("attention_scale", "attention_soft_cap", "final_soft_cap"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} must be positive; None leaves it out")

    @property
    def uses_rope(self) -> tuple[bool, ...]:
        """For each layer, whether it rotates queries and keys."""
        every = self.no_rope_every
        return tuple(not (every and (layer + 1) % every == 0) for layer in range(self.num_layers))

    @property
    def windows(self) -> tuple[int, ...]:
        """For each layer, how many tokens a token sees; 0 is all of its document."""
        every = self.global_every
        is_global = [bool(every) and (layer + 1) % every == 0 for layer in range(self.num_layers)]
        return tuple(0 if whole else self.sliding_window for whole in is_global)

    @property
    def layer_matmul_parameters(self) -> int:
        """Parameters of one layer that multiply activations."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + (2 if self.feed_forward == "relu2" else 3) * self.d_model * self.d_ff

    @property
    def module_matmul_parameters(self) -> int:
        """The same of one module of `multi_token`, the shared output layer not included."""
        projection = 2 * self.d_model**2 if self.multi_token.kind == "sequential" else 0
        return self.layer_matmul_parameters + projection

    @property
    def stacked_matmul_parameters(self) -> int:
        """The same of all layers and modules."""
        modules = self.multi_token.modules * self.module_matmul_parameters
        return self.num_layers * self.layer_matmul_parameters + modules

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        D, F, H = self.d_model, self.d_ff, self.head_dim
        norm = D * (2 if self.norm == "layer" else 1)
        layer = self.layer_matmul_parameters + norm * (4 if self.norm_position == "pre_post" else 2)
        layer += 2 * H * self.qk_norm
        layer += H * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias + D * self.output_bias
        layer += ((F if self.feed_forward == "relu2" else 2 * F) + D) * self.feed_forward_bias
        embeddings = self.vocab_size * D * (1 if self.tied_head else 2)
        module = layer - self.layer_matmul_parameters + self.module_matmul_parameters
        module += norm * (3 if self.multi_token.kind == "sequential" else 1)
        return embeddings + self.num_layers * layer + norm + self.multi_token.modules * module

    def flops_per_token(self, row_length: int) -> float:
        """Training FLOPs a token, forward and backward: 6 N + 12 L N_heads H S.

        N counts the parameters of matrix products, the output head included, as often as it is used: once by the
        trunk and by each module. What the backward pass computes again is not counted.
        """
        matmul = self.stacked_matmul_parameters + self.multi_token.tokens * self.vocab_size * self.d_model
        return 6 * matmul + self.attention_flops_per_token(row_length)

    def attention_flops_per_token(self, row_length: int) -> float:
        """The part of it that is attention: 12 L N_heads H S.

        S is the mean number of keys that a query sees in a row that is one document: T / 2 (half of the T x T
        products are causal), or less in layers with a sliding window. Documents in a row shorten it further, which
        is not counted.
        """
        T, keys = row_length, 0.0
        for window in (*self.windows, *[self.sliding_window] * self.multi_token.modules):
            w = min(window, T) if window else T
            keys += w - w * w / (2 * T)
        return 12 * self.num_heads * self.head_dim * keys
