"""Public function of attention: what it refuses, which implementation it picks; decoding over a cache beside it."""

import logging
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_lab import inputs
from jax.sharding import AbstractDevice, AbstractMesh

from core.errors import UserError
from kernels.attention import reference
from kernels.attention.api import IMPLEMENTATIONS as attention_names
from kernels.attention.api import attention
from kernels.attention.cached import cached_attention
from kernels.cross_entropy.api import IMPLEMENTATIONS as loss_names
from kernels.rope.api import IMPLEMENTATIONS as rope_names
from model.config import Kernels


def test_unknown_implementation_names_the_choices():
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with pytest.raises(ValueError, match=r"'flash'.*auto, gpu, gpu_interpret, reference, tpu, tpu_interpret, xla"):
        attention(q, k, v, implementation="flash")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segment_ids_BT": jnp.zeros((1, 4))}, "segment ids should be integers, not float32"),
        ({"soft_cap": 0.0}, "soft_cap=0.0 should be above 0"),
        ({"window": 0}, "window=0 should be 1 or more"),
    ],
)
def test_options_without_sense(wrong, message):
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, **wrong)
    with pytest.raises(ValueError, match=r"q_BTNH \(1, 4, 2\) should have four axes"):
        attention(q[..., 0], k, v)


@pytest.mark.parametrize(
    ("q", "k", "ids"),
    [
        ((1, 4, 3, 8), (1, 4, 2, 8), (1, 4)),
        ((1, 4, 2, 8), (1, 5, 2, 8), (1, 4)),
        ((1, 4, 2, 8), (1, 4, 2, 8), (1, 5)),
    ],
)
def test_shapes_that_do_not_fit(q, k, ids):
    with pytest.raises(ValueError, match="attention"):
        attention(jnp.zeros(q), jnp.zeros(k), jnp.zeros(k), segment_ids_BT=jnp.zeros(ids, int))


def test_a_kernel_of_another_platform_is_refused_in_one_line():
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    others = "auto, gpu_interpret, reference, tpu_interpret, xla"
    with pytest.raises(UserError, match=f"'tpu' does not run on cpu; choose from {others}"):
        attention(q, k, v, implementation="tpu")


def test_what_a_kernel_cannot_take(caplog):
    """Asked for it is refused; picked by platform, the blocked one runs and the log says so, once."""
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8, jnp.float16)
    with pytest.raises(
        UserError, match="'tpu_interpret' takes float32 or bfloat16, not queries, keys and values in float16"
    ):
        attention(q, k, v, implementation="tpu_interpret")
    chip = AbstractMesh((1,), ("fsdp",), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    with caplog.at_level(logging.WARNING), jax.sharding.use_abstract_mesh(chip):
        for _ in range(2):
            assert jax.eval_shape(attention, q, k, v).out_BTNH.dtype == jnp.float16
    (record,) = caplog.records
    assert "implementation 'xla' on TPU v5 lite" in record.getMessage()
    assert "takes float32 or bfloat16, not queries, keys and values in float16" in record.getMessage()


def test_every_implementation_that_the_config_admits_is_there():
    hints = typing.get_type_hints(Kernels)
    for op, names in {"attention": attention_names, "cross_entropy": loss_names, "rope": rope_names}.items():
        assert set(typing.get_args(hints[op])) == {"auto", *names}


def test_choice_is_logged_once(caplog):
    (q, k, v, _), _ = inputs(1, 4, 2, 1, 8)
    with caplog.at_level(logging.INFO):
        attention(q, k, v)
        attention(q, k, v)
    assert [r.getMessage() for r in caplog.records if "attention" in r.getMessage()] == [
        "attention: implementation 'xla', picked for cpu"
    ]


@pytest.mark.parametrize("options", [{}, {"soft_cap": 2.0, "scale": 0.7}, {"window": 5}, {"window": jnp.int32(30)}])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_over_a_cache_give_what_they_give_in_their_row(options, dtype):
    """The last three of rows of different lengths; slots behind them hold what an earlier row left there."""
    (q, k, v, _), _ = inputs(3, 40, 6, 2, 16)
    q, k, v = (a.astype(dtype) for a in (q, k, v))
    rows, positions = np.arange(3)[:, None], np.array([[0, 1, 2], [15, 16, 17], [37, 38, 39]])
    got = cached_attention(
        q[rows, positions],
        k.transpose(0, 2, 3, 1),
        v.transpose(0, 2, 1, 3),
        jnp.asarray(positions),
        **options,
    )
    scale = options.get("scale", 16**-0.5)
    whole = reference.attention(q, k, v, None, scale, options.get("soft_cap"), options.get("window"))[0]
    assert got.dtype == dtype
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    want = whole[rows, positions].astype(jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=bound, rtol=bound)
