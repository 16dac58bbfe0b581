"""`config.json` of Hugging Face transformers as a ModelConfig, and back."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.config import coerce
from core.errors import UserError, suggest
from model.config import MAX_LAYERS, ModelConfig, MultiToken, RopeScaling

MAX_BYTES = 1 << 20  # of config.json; real ones are 1 to 4 kB


class Family(NamedTuple):
    """What transformers fixes for a `model_type`, and what it assumes where config.json is silent."""

    architecture: str
    fixed: Mapping[str, Any] = {}  # fields of ModelConfig that no key changes
    own_keys: frozenset[str] = frozenset()
    tied: bool = False
    theta: float = 10_000.0
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    activation: str = "silu"


_BIASES = frozenset({"attention_bias", "mlp_bias"})
_WINDOW = frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"})
_NO_ROPE = frozenset({"no_rope_layers", "no_rope_layer_interval"})
_GEMMA = {"feed_forward": "geglu", "norm_position": "pre_post", "norm_plus_one": True}
_SOFT_CAPS = {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}

# In the order in which an export tries them.
FAMILIES = {
    "llama": Family("LlamaForCausalLM", own_keys=_BIASES),
    "mistral": Family("MistralForCausalLM", own_keys=frozenset({"sliding_window"})),
    "smollm3": Family("SmolLM3ForCausalLM", own_keys=_BIASES | _NO_ROPE | _WINDOW, tied=True, theta=2_000_000.0),
    "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": True}, frozenset({"attention_bias"}) | _WINDOW, head_dim=128),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}, _WINDOW),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA,
        frozenset({"attention_bias", "sliding_window", "layer_types", "use_bidirectional_attention", *_SOFT_CAPS}),
        tied=True,
        head_dim=256,
        activation="gelu_pytorch_tanh",
    ),
}

# How many modules predict further tokens, as DeepSeek-V3 counts them, and how many tokens are predicted, as Gloeckle
# et al. do; transformers leaves them out.
MODULES = {"sequential": "num_nextn_predict_layers", "parallel": "n_future_tokens"}
COMMON_KEYS = frozenset(MODULES.values()) | frozenset(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps initializer_range tie_word_embeddings rope_theta rope_scaling rope_parameters hidden_act
    hidden_activation""".split()
)
# Keys that say nothing about the mathematics of inference.
WITHOUT_EFFECT = frozenset(
    """_attn_implementation _name_or_path architectures attention_dropout auto_map bos_token_id cache_implementation
    dtype eos_token_id is_llama_config max_position_embeddings model_type pad_token_id pretraining_tp torch_dtype
    transformers.js_config transformers_version unk_token_id use_cache""".split()
)
WITHOUT_EFFECT_ON_ROPE = (("partial_rotary_factor", 1), ("truncate", True))
# Keys that transformers knows and Quintet does not, by the one value at which they do nothing.
ONLY = {
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
    "use_mrope": False,
}

THEIR_NAMES = {
    "num_layers": "num_hidden_layers", "d_model": "hidden_size", "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads", "d_ff": "intermediate_size", "norm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range", "attention_soft_cap": "attn_logit_softcapping",
    "final_soft_cap": "final_logit_softcapping",
}  # fmt: skip


def read_config(folder: Path) -> ModelConfig:
    """The shape that a folder's `config.json` describes."""
    return from_hf(read_json_object(folder / "config.json", MAX_BYTES), folder / "config.json")


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON file of bounded size that holds an object."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; a Hugging Face model is a folder with config.json and safetensors")
    if path.stat().st_size > max_bytes:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; no model's has more than {max_bytes:,}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def from_hf(described: Mapping[str, Any], where: Path) -> ModelConfig:
    """The ModelConfig of a `config.json`; `where` is for messages. Unknown families, keys and values are refused."""
    kind = described.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = suggest(str(kind), FAMILIES)
        raise UserError(f"{where}: model_type {kind!r} is not a family that Quintet computes{near}")
    family = FAMILIES[kind]
    known = COMMON_KEYS | WITHOUT_EFFECT | family.own_keys | set(ONLY)
    for key in described:
        if key not in known:
            raise UserError(f"{where}: unknown key {key} in a {kind} config; Quintet would ignore what it changes")
    for key, value in ONLY.items():
        if described.get(key, value) not in (value, None):
            raise UserError(f"{where}: {key}={described[key]!r} is not supported")
    try:
        return ModelConfig(**_fields(_Reader(described, where), kind, family))
    except ValueError as error:
        theirs = re.sub(r"\w+(?==)", lambda name: THEIR_NAMES.get(name[0], name[0]), str(error))
        raise UserError(f"{where}: {theirs}") from None


class _Reader(NamedTuple):
    """Values of a config.json by key and type."""

    described: Mapping[str, Any]
    where: Path

    def get(self, key: str, hint: Any, default: Any = ...) -> Any:
        """The value as the type asked; null and a missing key are the default."""
        value = self.described.get(key)
        if value is None:
            if default is ...:
                raise UserError(f"{self.where}: key {key} is missing")
            return default
        try:
            return coerce(hint, value, key)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None


def _fields(read: _Reader, kind: str, family: Family) -> dict[str, Any]:
    """The fields of ModelConfig."""
    D, N = read.get("hidden_size", int), read.get("num_attention_heads", int)
    L = read.get("num_hidden_layers", int)
    if L > MAX_LAYERS:
        raise UserError(f"{read.where}: num_hidden_layers={L} is above {MAX_LAYERS}")
    fields: dict[str, Any] = {
        "vocab_size": read.get("vocab_size", int),
        "num_layers": L,
        "d_model": D,
        "num_heads": N,
        "num_kv_heads": read.get("num_key_value_heads", int, N),
        "head_dim": read.get("head_dim", int, family.head_dim or D // max(N, 1)),
        "d_ff": read.get("intermediate_size", int),
        "norm_epsilon": read.get("rms_norm_eps", float, 1e-6),
        "init_std": read.get("initializer_range", float, 0.02),
        "tied_head": read.get("tie_word_embeddings", bool, family.tied),
        "no_rope_every": 0,
        "multi_token": _multi_token(read),
        **family.fixed,
        **_rope(read, family),
    }
    if "attention_bias" in family.own_keys and read.get("attention_bias", bool, False):
        fields |= {"qkv_bias": True, "output_bias": True}
    if "mlp_bias" in family.own_keys:
        fields["feed_forward_bias"] = read.get("mlp_bias", bool, False)
    if kind == "smollm3":
        fields["no_rope_every"] = _no_rope_every(read, L)
    for key in ("hidden_act", "hidden_activation"):
        act = read.get(key, str, family.activation)
        if act != family.activation:
            raise UserError(
                f"{read.where}: {key} {act!r} is not supported in a {kind} model; {family.activation!r} is"
            )
    if kind == "gemma2":
        scalar = read.get("query_pre_attn_scalar", float, 256.0)
        if scalar <= 0:
            raise UserError(f"{read.where}: query_pre_attn_scalar={scalar} must be positive")
        fields |= {
            "embedding_scale": max(D, 0) ** 0.5,
            "attention_scale": None if scalar == fields["head_dim"] else scalar**-0.5,
            "attention_soft_cap": _optional(read, "attn_logit_softcapping", 50.0),
            "final_soft_cap": _optional(read, "final_logit_softcapping", 30.0),
        }
    return fields | _window(read, kind, L)


def _multi_token(read: _Reader) -> MultiToken:
    """The modules beside the trunk: none where both keys are silent."""
    modules, tokens = read.get(MODULES["sequential"], int, 0), read.get(MODULES["parallel"], int, 1)
    if not 0 <= modules < MAX_LAYERS or not 1 <= tokens <= MAX_LAYERS or (modules and tokens > 1):
        raise UserError(
            f"{read.where}: num_nextn_predict_layers={modules} with n_future_tokens={tokens} is not supported; "
            f"one of them may say how many modules there are, up to {MAX_LAYERS - 1}"
        )
    kind = "sequential" if modules else "parallel" if tokens > 1 else "none"
    return MultiToken(kind, modules + tokens)


def key_of_modules(config: ModelConfig) -> str:
    """The key of config.json that says how many there are."""
    return MODULES[config.multi_token.kind]


def _optional(read: _Reader, key: str, default: Any) -> Any:
    """A number that null turns off."""
    return None if key in read.described and read.described[key] is None else read.get(key, type(default), default)


def _interval(chosen: Sequence[bool]) -> int | None:
    """n where just every n-th is chosen, 0 where none is, None where it is otherwise."""
    every = chosen.index(True) + 1 if True in chosen else 0
    regular = all(is_chosen == bool(every and (i + 1) % every == 0) for i, is_chosen in enumerate(chosen))
    return every if regular else None


def _no_rope_every(read: _Reader, L: int) -> int:
    """The interval of layers without RoPE; SmolLM3 may also list them (1 where RoPE is used)."""
    every = read.get("no_rope_layer_interval", int, 4)
    listed = read.get("no_rope_layers", tuple[int, ...], ())
    if not listed:
        if every < 1:
            raise UserError(f"{read.where}: no_rope_layer_interval={every} must be positive")
        return every if every <= L else 0
    found = _interval([not uses for uses in listed])
    if found is None or len(listed) != L:
        raise UserError(f"{read.where}: no_rope_layers must be 1 but for 0 at every n-th of {L} layers")
    return found


def _window(read: _Reader, kind: str, L: int) -> dict[str, Any]:
    """Which layers slide: all (Mistral), all but every n-th (Gemma 2), or none."""
    if "sliding_window" not in FAMILIES[kind].own_keys:
        return {}
    window = _optional(read, "sliding_window", 4096)
    if kind in ("smollm3", "qwen3", "qwen2") and not read.get("use_sliding_window", bool, False):
        window = None
    if kind == "mistral":
        return {} if window is None else {"sliding_window": window}
    default = ("sliding_attention", "full_attention") * L if kind == "gemma2" else ("full_attention",) * L
    kinds = read.get("layer_types", tuple[str, ...], default[:L])
    every = _interval([one == "full_attention" for one in kinds])
    if every is None or len(kinds) != L or not {"full_attention", "sliding_attention"}.issuperset(kinds):
        raise UserError(
            f"{read.where}: layer_types must name {L} layers, sliding_attention but for full_attention at every n-th"
        )
    if every == 1:
        if window is not None and "layer_types" not in read.described:
            raise UserError(f"{read.where}: use_sliding_window needs layer_types, which say the layers that slide")
        return {}
    if window is None:
        raise UserError(f"{read.where}: layer_types has sliding_attention, but no sliding_window is in use")
    return {"sliding_window": window, "global_every": every}


def _rope(read: _Reader, family: Family) -> dict[str, Any]:
    """RoPE from `rope_theta` and `rope_scaling`, or from `rope_parameters` of transformers 5."""
    given = {**read.get("rope_scaling", dict[str, Any], {}), **read.get("rope_parameters", dict[str, Any], {})}
    rope = _Reader(given, read.where)
    theta = rope.get("rope_theta", float, read.get("rope_theta", float, family.theta))
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    kinds = {"default": "none", "linear": "interpolation", "llama3": "llama3", "yarn": "yarn"}
    if kind not in kinds:
        raise UserError(f"{read.where}: rope_type {kind!r} is not supported{suggest(kind, kinds)}")
    keys = {"rope_theta", "rope_type", "type"}
    scaling: dict[str, Any] = {}
    if kind != "default":
        scaling["factor"] = rope.get("factor", float)
        keys.add("factor")
    if kind in ("llama3", "yarn"):
        original = read.get("max_position_embeddings", int, 0)
        scaling["original_length"] = rope.get("original_max_position_embeddings", int, original)
        keys.add("original_max_position_embeddings")
    if kind == "llama3":
        scaling["low_frequency_factor"] = rope.get("low_freq_factor", float)
        scaling["high_frequency_factor"] = rope.get("high_freq_factor", float)
        keys |= {"low_freq_factor", "high_freq_factor"}
    if kind == "yarn":
        scaling["beta_fast"] = rope.get("beta_fast", float, 32.0)
        scaling["beta_slow"] = rope.get("beta_slow", float, 1.0)
        scaling["attention_factor"] = rope.get("attention_factor", float, None)
        keys |= {"beta_fast", "beta_slow", "attention_factor"}
    for key, value in given.items():
        if key not in keys and value is not None and (key, value) not in WITHOUT_EFFECT_ON_ROPE:
            raise UserError(f"{read.where}: rope scaling {kind!r} with {key}={value!r} is not supported")
    if scaling.get("attention_factor") == 1:  # YaRN without its attention scale
        return {
            "rope_theta": theta,
            "rope_scaling": RopeScaling("ntk_by_parts", **{**scaling, "attention_factor": None}),
        }
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kinds[kind], **scaling)}


def to_hf(config: ModelConfig, *, max_positions: int, bos: int | None, eos: int | None, dtype: str) -> dict[str, Any]:
    """The `config.json` of this shape, of the first family that computes just this.

    `max_positions` is the longest row; where RoPE is stretched, at least what it is stretched to.
    """
    scaling = config.rope_scaling
    length = max(max_positions, round(scaling.factor * scaling.original_length))
    refusals = {}
    for kind, family in FAMILIES.items():
        described = _described(config, kind, length) | {
            "architectures": [family.architecture],
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": eos,
            "torch_dtype": dtype,
        }
        found = from_hf(described, Path("config.json"))
        # Back in our words it must be the same model; these do not change the next token's logits.
        same = {name: getattr(found, name) for name in ("dtype", "remat", "kernels")}
        asked = dataclasses.replace(_plain(config), **same)
        refusals[kind] = [
            field.name
            for field in dataclasses.fields(asked)
            if getattr(asked, field.name) != getattr(found, field.name)
        ]
        if not refusals[kind]:
            return described
    nearest = min(refusals, key=lambda kind: len(refusals[kind]))
    differing = ", ".join(f"{name}={getattr(config, name)!r}" for name in refusals[nearest])
    raise UserError(f"no Hugging Face family computes this model; the nearest, {nearest}, has no {differing}")


def _plain(config: ModelConfig) -> ModelConfig:
    """The same mathematics in the words that a config.json comes back as.

    NTK-aware scaling is the larger theta that it is, options without effect here have their defaults.
    """
    scaling, H = config.rope_scaling, config.head_dim
    theta, scale = config.rope_theta, config.attention_scale
    if scaling.ntk_factor != 1:
        theta *= scaling.ntk_factor ** (H / (H - 2))
    slides = any(config.windows)
    return dataclasses.replace(
        config,
        no_rope_every=0 if all(config.uses_rope) else config.no_rope_every,
        rope_theta=theta,
        rope_scaling=_plain_scaling(scaling),
        attention_scale=None if scale == H**-0.5 else scale,
        sliding_window=config.sliding_window if slides else 0,
        global_every=config.global_every if slides and not all(config.windows) else 0,
    )


def _plain_scaling(scaling: RopeScaling) -> RopeScaling:
    kind = "ntk_by_parts" if scaling.kind == "yarn" and scaling.attention_factor == 1 else scaling.kind
    used = {
        "none": (),
        "interpolation": ("factor",),
        "llama3": ("factor", "original_length", "low_frequency_factor", "high_frequency_factor"),
        "ntk_by_parts": ("factor", "original_length", "beta_fast", "beta_slow"),
        "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "attention_factor"),
    }[kind]
    return RopeScaling(kind, **{name: getattr(scaling, name) for name in used})


def _described(config: ModelConfig, kind: str, length: int) -> dict[str, Any]:
    """The keys of a family, whether or not they say all of `config`."""
    config, family = _plain(config), FAMILIES[kind]
    described = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": family.activation,
        "max_position_embeddings": length,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": 0.0,
        "use_cache": True,
    }
    if M := config.multi_token.modules:
        described[key_of_modules(config)] = M if config.multi_token.kind == "sequential" else 1 + M
    if config.rope_scaling.kind != "none":
        described["rope_scaling"] = _scaling(config.rope_scaling)
    if "attention_bias" in family.own_keys:
        described["attention_bias"] = config.output_bias
    if "mlp_bias" in family.own_keys:
        described["mlp_bias"] = config.feed_forward_bias
    if "no_rope_layers" in family.own_keys:
        described["no_rope_layer_interval"] = config.no_rope_every or config.num_layers + 1
        described["no_rope_layers"] = [int(uses) for uses in config.uses_rope]  # 1 where RoPE is used
    if "use_sliding_window" in family.own_keys:
        described["use_sliding_window"] = any(config.windows)
        described["layer_types"] = _layer_types(config)
    if "sliding_window" in family.own_keys:
        described["sliding_window"] = config.sliding_window or None
    if kind == "gemma2":
        described["hidden_activation"] = described["hidden_act"]
        scale = config.attention_scale or config.head_dim**-0.5
        described["query_pre_attn_scalar"] = max(round(scale**-2), 1) if scale > 1e-9 else 1  # an integer there
        described["attn_logit_softcapping"] = config.attention_soft_cap
        described["final_logit_softcapping"] = config.final_soft_cap
        described["sliding_window"] = config.sliding_window or length
        described["layer_types"] = _layer_types(config)
    return described


def _layer_types(config: ModelConfig) -> list[str]:
    return [f"{'sliding' if window else 'full'}_attention" for window in config.windows]


def _scaling(scaling: RopeScaling) -> dict[str, Any]:
    """`rope_scaling` in the words of transformers; YaRN without its attention scale is NTK by parts."""
    kind = {"interpolation": "linear", "ntk_by_parts": "yarn"}.get(scaling.kind, scaling.kind)
    described: dict[str, Any] = {"rope_type": kind, "factor": scaling.factor}
    if kind in ("yarn", "llama3"):
        described["original_max_position_embeddings"] = scaling.original_length
    if kind == "llama3":
        described["low_freq_factor"] = scaling.low_frequency_factor
        described["high_freq_factor"] = scaling.high_frequency_factor
    if kind == "yarn":
        described |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        factor = 1.0 if scaling.kind == "ntk_by_parts" else scaling.attention_factor
        if factor is not None:
            described["attention_factor"] = factor
    return described
