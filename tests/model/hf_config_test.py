"""config.json of published models as presets, and of any model there and back; the one line about each bad one."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from model.config import ModelConfig, RopeScaling
from model.hf_config import FAMILIES, from_hf, read_config, to_hf
from model.presets import PRESETS

WHERE = Path("config.json")
LLAMA = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip

# The files as their authors published them.
PUBLISHED = {
    "smollm3-3b": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048,
        "initializer_range": 0.02, "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "transformers_version": "4.54.0.dev0", "use_cache": False,
        "use_sliding_window": False, "vocab_size": 128256,
    },
    "smollm2-135m": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": True,
        "vocab_size": 49152,
    },
    "llama-2-7b": {
        "_name_or_path": "meta-llama/Llama-2-7b-hf", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0", "use_cache": True, "vocab_size": 32000,
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 40960,
        "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
        "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "torch_dtype": "float32", "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
    },
}  # fmt: skip


def refusal(described) -> str:
    with pytest.raises(UserError) as caught:
        from_hf(described, WHERE)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json")
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_presets(name):
    found = from_hf(PUBLISHED[name], WHERE)
    assert found == PRESETS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_of_newer_versions_say_the_same(name):
    """transformers 5 has the rotation in one group, and `dtype`."""
    described = dict(PUBLISHED[name])
    described["dtype"] = described.pop("torch_dtype")
    rope = {"rope_type": "default", **(described.pop("rope_scaling", None) or {})}
    described["rope_parameters"] = {"rope_theta": described.pop("rope_theta", 10_000.0), **rope}
    L = described["num_hidden_layers"]
    if name == "gemma-2-2b":
        described["layer_types"] = ["sliding_attention", "full_attention"] * (L // 2)
        described["use_bidirectional_attention"] = False
    elif name.startswith("qwen3"):
        described["layer_types"] = ["full_attention"] * L
    assert from_hf(described, WHERE) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_through_unchanged(name):
    config = PRESETS[name]
    described = to_hf(config, max_positions=128, bos=1, eos=2, dtype="float32")
    assert from_hf(json.loads(json.dumps(described)), WHERE) == config


def test_qwen2_and_mistral_as_published():
    qwen = {
        **LLAMA, "model_type": "qwen2", "sliding_window": 32768, "max_window_layers": 24, "use_mrope": False,
        "use_sliding_window": False, "rope_theta": 1000000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    found = from_hf(qwen, WHERE)
    assert found.qkv_bias
    assert not found.output_bias
    assert found.windows == (0,) * 4
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 16}
    assert from_hf(mistral, WHERE).windows == (16,) * 4
    assert from_hf({**mistral, "sliding_window": None}, WHERE).windows == (0,) * 4
    # What transformers assumes where the key is missing.
    assert from_hf({**LLAMA, "model_type": "mistral"}, WHERE).windows == (4096,) * 4


def test_gaps_are_filled_as_transformers_does():
    bare = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "num_key_value_heads")}
    found = from_hf(bare, WHERE)
    assert (found.head_dim, found.num_kv_heads, found.rope_theta) == (8, 4, 1e4)
    assert (found.tied_head, found.norm_epsilon, found.init_std) == (False, 1e-6, 0.02)
    assert from_hf({**bare, "head_dim": None}, WHERE) == found
    assert from_hf({**LLAMA, "rms_norm_eps": 1, "rope_theta": 2}, WHERE).norm_epsilon == 1.0  # integers as floats
    smollm3 = from_hf({**LLAMA, "model_type": "smollm3"}, WHERE)
    assert (smollm3.no_rope_every, smollm3.rope_theta, smollm3.tied_head) == (4, 2e6, True)
    gemma = from_hf({**LLAMA, "model_type": "gemma2", "final_logit_softcapping": None}, WHERE)
    assert (gemma.attention_soft_cap, gemma.final_soft_cap, gemma.global_every) == (50.0, None, 2)


def test_rope_scaling_of_each_kind():
    def scaling(**given):
        return from_hf({**LLAMA, "max_position_embeddings": 64, "rope_scaling": given}, WHERE).rope_scaling

    assert scaling(type="linear", factor=4) == RopeScaling("interpolation", factor=4.0)
    assert scaling(rope_type="yarn", factor=2.0, truncate=True) == RopeScaling("yarn", 2.0, original_length=64)
    yarn = scaling(rope_type="yarn", factor=2.0, attention_factor=1.2, original_max_position_embeddings=32)
    assert yarn == RopeScaling("yarn", 2.0, original_length=32, attention_factor=1.2)
    by_parts = scaling(rope_type="yarn", factor=2.0, attention_factor=1.0, beta_fast=16)
    assert by_parts == RopeScaling("ntk_by_parts", 2.0, original_length=64, beta_fast=16.0)


BAD = {
    "no family": ({"model_type": None}, "model_type None is not a family.*known are gemma2, llama"),
    "a family that is a list": ({"model_type": ["llama"]}, r"model_type \['llama'\] is not a family"),
    "a near family": ({"model_type": "lama"}, "did you mean llama?"),
    "an unknown key": ({"num_experts": 8}, "unknown key num_experts in a llama config"),
    "quantised": ({"quantization_config": {}}, "unknown key quantization_config"),
    "a key of another family": ({"attn_logit_softcapping": 50.0}, "unknown key attn_logit_softcapping in a llama"),
    "a missing key": ({"hidden_size": None}, "key hidden_size is missing"),
    "text": ({"num_hidden_layers": "4"}, "num_hidden_layers='4' must be an integer"),
    "a fraction": ({"vocab_size": 96.0}, "vocab_size=96.0 must be an integer"),
    "true for 1": ({"num_key_value_heads": True}, "num_key_value_heads=True must be an integer"),
    "1 for true": ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be True or False"),
    "no heads": ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads=0 must be positive"),
    "no width": ({"hidden_size": 0, "head_dim": None}, "hidden_size=0 must be positive"),
    "negative width": ({"model_type": "gemma2", "hidden_size": -4}, "hidden_size=-4 must be positive"),
    "heads that do not group": ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads=3"),
    "an odd head": ({"head_dim": 7}, "head_dim=7 must be even"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is above 10000"),
    "NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
    "infinity": ({"rope_theta": float("inf")}, "rope_theta=inf must be a finite number"),
    "no float": ({"rope_theta": 10**400}, "rope_theta=1000.* must be a number"),
    "no base": ({"rope_theta": 1.0}, "rope_theta=1.0 must be above 1"),
    "another activation": ({"hidden_act": "relu2"}, "hidden_act 'relu2' is not supported in a llama.*'silu' is"),
    "the other key of it": (
        {"hidden_act": "gelu", "hidden_activation": "silu"}, "hidden_act 'gelu' is not supported",
    ),
    "Gemma's exact GELU": ({"model_type": "gemma2", "hidden_activation": "gelu"}, "'gelu_pytorch_tanh' is"),
    "Gemma's scale": ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0.0 must be"),
    "a soft cap of 0": ({"model_type": "gemma2", "final_logit_softcapping": 0}, "final_logit_softcapping=0.0 must"),
    "interleaved": ({"rope_interleaved": True}, "rope_interleaved=True is not supported"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    "bidirectional": ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported; known"),
    "longrope": ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rope_type 'longrope' is not"),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "key factor is missing"),
    "not a group": ({"rope_scaling": [1]}, r"rope_scaling=\[1\] must be"),
    "a factor below 1": ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5 must be 1 or more"),
    "YaRN without a length": ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn needs original_length"),
    "a key of another scaling": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 8}}, "'linear' with beta_fast=8",
    ),
    "YaRN's mscale": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}, "max_position_embeddings": 64},
        "'yarn' with mscale=0.7 is not supported",
    ),
    "a rotation a layer type": ({"rope_parameters": {"full_attention": {}}}, "with full_attention={} is not"),
    "irregular RoPE": ({"model_type": "smollm3", "no_rope_layers": [1, 0, 0, 1]}, "every n-th of 4 layers"),
    "RoPE for other layers": ({"model_type": "smollm3", "no_rope_layers": [1, 1, 0]}, "every n-th of 4 layers"),
    "no interval": ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval=0 must be pos"),
    "irregular windows": (
        {"model_type": "gemma2", "layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types must name",
    ),
    "an unknown kind of layer": ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 4}, "layer_types"),
    "windows that are off": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4}, "no sliding_window is in use",
    ),
    "windows of unnamed layers": (
        {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8}, "needs layer_types",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_computed_is_refused_in_one_line(name):
    change, message = BAD[name]
    with pytest.raises(UserError, match=message):
        from_hf({**LLAMA, **change}, WHERE)
    refusal({**LLAMA, **change})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_missing_keys_are_named(key):
    described = {name: value for name, value in LLAMA.items() if name != key}
    assert refusal(described) == f"config.json: key {key} is missing"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = sorted({key for family in FAMILIES.values() for key in family.own_keys} | LLAMA.keys() - {"model_type"})
KEYS += [
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "rms_norm_eps",
    "hidden_act",
    "head_dim",
    "rope_interleaved",
]


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=2))
def test_any_value_is_a_model_or_one_line(kind, changes):
    try:
        found = from_hf({**LLAMA, "model_type": kind, **changes}, WHERE)
    except UserError as error:
        assert str(error).startswith("config.json")  # noqa: PT017 - the other outcome is checked too
    else:
        assert found.num_parameters > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ("[" * 200_000, "is not JSON"),
        ('{"a": "\xff', "is not JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "is not JSON"),
        ("{" + " " * (1 << 20) + "}", "no model's has more than 1,048,576"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist; a Hugging Face model is a folder with"):
        read_config(tmp_path)


SMALL = ModelConfig(vocab_size=96, num_layers=4, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward": "relu2"}, "the nearest, smollm3, has no feed_forward='relu2'"),
        ({"norm": "layer"}, "the nearest, smollm3, has no norm='layer'"),
        ({"rope_pairs": "interleaved"}, "the nearest, smollm3, has no rope_pairs='interleaved'"),
        ({"qk_norm": True}, "the nearest, smollm3, has no qk_norm=True"),
        ({"attention_scale": 3.0}, "the nearest, smollm3, has no attention_scale=3.0"),
        ({"attention_scale": 1e-300}, "has no attention_scale=1e-300"),
        ({"sliding_window": 4, "no_rope_every": 0, "feed_forward": "geglu"}, "the nearest, mistral"),
        ({"embedding_scale": 2.0, "norm_plus_one": True}, "has no norm_plus_one=True, embedding_scale=2.0"),
    ],
)
def test_models_that_no_family_computes_are_refused_with_the_nearest(change, message):
    with pytest.raises(UserError, match=f"no Hugging Face family computes this model; .*{message}"):
        to_hf(dataclasses.replace(SMALL, **change), max_positions=64, bos=1, eos=2, dtype="float32")


def models() -> st.SearchStrategy[ModelConfig]:
    """Any option that some family has, in any combination."""
    scalings = [
        RopeScaling(),
        RopeScaling(ntk_factor=2.0, beta_fast=9.0),
        RopeScaling("interpolation", 4.0, original_length=9),
        RopeScaling("yarn", 4.0, original_length=32),
        RopeScaling("yarn", 2.0, original_length=8, attention_factor=1.0),
        RopeScaling("ntk_by_parts", 4.0, original_length=32),
        RopeScaling("llama3", 8.0, original_length=32),
    ]

    def option(*values):
        return st.sampled_from(values)

    return st.builds(
        lambda window, every, **rest: dataclasses.replace(
            SMALL, sliding_window=window, global_every=every if window else 0, **rest
        ),
        window=option(0, 0, 8),
        every=option(0, 1, 2, 7),
        num_layers=option(1, 4),
        no_rope_every=option(0, 0, 1, 3, 4, 9),
        rope_scaling=st.sampled_from(scalings),
        qk_norm=option(False, False, True),
        qkv_bias=st.booleans(),
        output_bias=st.booleans(),
        feed_forward_bias=option(False, False, True),
        tied_head=st.booleans(),
        attention_scale=option(None, None, 8**-0.5, 0.25),
        dtype=option("float32", "bfloat16"),
    )


@settings(max_examples=200, deadline=None)
@given(config=models(), gemma=st.booleans())
def test_what_is_exported_comes_back_as_the_same_mathematics(config, gemma):
    if gemma:
        config = dataclasses.replace(
            config, feed_forward="geglu", norm_position="pre_post", norm_plus_one=True, embedding_scale=32**0.5
        )
    try:
        described = to_hf(config, max_positions=64, bos=1, eos=2, dtype="float32")
    except UserError:
        return
    found = from_hf(json.loads(json.dumps(described)), WHERE)
    assert (found.uses_rope, found.windows) == (config.uses_rope, config.windows)
    assert found.num_parameters == config.num_parameters
    assert to_hf(found, max_positions=64, bos=1, eos=2, dtype="float32") == described


@pytest.mark.parametrize(
    ("change", "family"),
    [
        ({"no_rope_every": 0}, "llama"),
        ({"no_rope_every": 9}, "llama"),  # more than there are layers
        ({}, "smollm3"),
        ({"num_layers": 3}, "llama"),
        ({"no_rope_every": 1}, "smollm3"),
        ({"no_rope_every": 0, "qk_norm": True}, "qwen3"),
        ({"no_rope_every": 0, "qkv_bias": True}, "qwen2"),
        ({"no_rope_every": 0, "qkv_bias": True, "output_bias": True}, "llama"),
        ({"no_rope_every": 0, "sliding_window": 8}, "mistral"),
        ({"no_rope_every": 0, "sliding_window": 8, "global_every": 1}, "llama"),
        ({"no_rope_every": 0, "sliding_window": 8, "global_every": 2}, "smollm3"),
        ({"sliding_window": 8}, "smollm3"),
        ({"no_rope_every": 0, "sliding_window": 8, "qk_norm": True}, "qwen3"),
        ({"no_rope_every": 0, "sliding_window": 8, "global_every": 2, "qkv_bias": True}, "qwen2"),
        ({"no_rope_every": 0, "rope_scaling": RopeScaling("yarn", 2.0, 1.0, 16, attention_factor=1.0)}, "llama"),
    ],
)
def test_the_family_that_an_export_is(change, family):
    described = to_hf(dataclasses.replace(SMALL, **change), max_positions=64, bos=1, eos=2, dtype="float32")
    assert described["model_type"] == family


def test_a_stretched_model_says_the_length_it_is_stretched_to():
    config = dataclasses.replace(SMALL, rope_scaling=RopeScaling("yarn", 2.0, original_length=65_536))
    assert to_hf(config, max_positions=4096, bos=1, eos=2, dtype="float32")["max_position_embeddings"] == 131_072
