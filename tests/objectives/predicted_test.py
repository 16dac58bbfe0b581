"""What is left out of the loss: that it is not learnt from, how much it is, and bad input."""

import dataclasses

import jax
import numpy as np
import pytest

from core.config import parse
from core.errors import UserError
from data.chat import ChatTemplate, default_source
from data.conversations import encode_conversation
from data.packing import Split
from data.pipeline import Batch
from data.repeats import Repeats
from data.shards import Tokens
from lab import ByteTokenizer
from model import transformer
from model.config import ModelConfig
from objectives.build import build, require_room
from objectives.config import MultiTokenConfig, ObjectiveConfig, RepeatsConfig
from objectives.interface import Seen, mean
from objectives.predicted import Predicted
from objectives_lab import make_batch

MODEL = ModelConfig(300, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=24, init_std=0.3)
SPAN = ObjectiveConfig(repeats=RepeatsConfig(mask="span"), multi_token=MultiTokenConfig(trunk=(0.5, 0.25)))


def value(params, batch, objective):
    """What is minimised, and the metrics."""
    total = build(MODEL, objective)
    counts = total.counts(batch)
    loss, metrics = total.loss(params, batch, counts)
    return loss, {name: mean(metrics.sums[name], counts[name]) for name in counts}


graded = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=2)
PLAIN = ObjectiveConfig()


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: random.normal(0, 0.4, leaf.shape).astype(np.float32), transformer.abstract(MODEL)
    )


def conversation():
    """A batch of one row, by our chat template, and its tokenizer."""
    tokenizer = ByteTokenizer(["<|im_start|>", "<|im_end|>"])
    template = ChatTemplate(default_source(), name="ours", bos="", eos="<|im_end|>", date="2025-06-30")
    messages = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}]
    ids, trained = encode_conversation(tokenizer, template, messages)
    tokens = Tokens(np.array(ids), np.array(trained))
    row = Split(np.array([len(ids)]), len(ids) - 1).row(tokens, 0)
    return Batch(*(field[None] for field in row)), tokenizer


def repeated():
    """A batch in which a span of one row is said again and again."""
    batch = make_batch(packed=False)
    targets = batch.targets_BT.copy()
    targets[1, 3:9] = 7
    weights = Repeats(1, 2, 4).weights(targets, batch.segment_ids_BT, batch.weights_BT)
    assert (weights == 0).sum() == 6
    return batch._replace(targets_BT=targets, weights_BT=weights)


@pytest.mark.parametrize("masked", ["prompt", "repetition", "documents"])
def test_what_has_no_weight_is_not_learnt_from(params, masked):
    """Losses of the next and of further tokens, metrics and gradients are those of any other targets there."""
    batch = {"prompt": lambda: conversation()[0], "repetition": repeated, "documents": make_batch}[masked]()
    other = batch._replace(targets_BT=np.where(batch.weights_BT > 0, batch.targets_BT, batch.targets_BT // 2 + 1))
    assert (other.targets_BT != batch.targets_BT).any()
    found, expected = graded(params, other, SPAN), graded(params, batch, SPAN)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    everything = batch._replace(weights_BT=np.ones_like(batch.weights_BT))
    assert float(graded(params, everything, SPAN)[0][0]) != float(expected[0][0])


def test_of_a_conversation_the_assistant_alone_is_learnt_from():
    batch, tokenizer = conversation()
    said = tokenizer.decode(batch.targets_BT[batch.weights_BT == 1].tolist(), special=True)
    assert "It is 5.<|im_end|>" in said
    assert "What is 2 + 3?" in tokenizer.decode(batch.targets_BT[0].tolist())
    assert "What" not in said


def test_the_share_that_is_predicted_is_a_metric_where_repetitions_are_left_out(params):
    batch, padded = repeated(), make_batch()
    (_, metrics), _ = graded(params, batch, SPAN)
    assert float(metrics["predicted"]) == pytest.approx(batch.weights_BT.mean())
    (_, metrics), _ = graded(params, padded, SPAN)
    assert float(metrics["predicted"]) == pytest.approx(padded.weights_BT.sum() / (padded.segment_ids_BT > 0).sum())
    parts = [Batch(*(field[row : row + 1] for field in padded)) for row in range(2)]
    sums = [Predicted().measure(Seen(MODEL, params, None, part, None), {}, 0.0).sums["predicted"] for part in parts]
    assert float(sum(sums) / Predicted().counts(padded)["predicted"]) == pytest.approx(float(metrics["predicted"]))
    (_, plain), _ = graded(params, padded, PLAIN)
    assert set(plain) == {"loss", "accuracy"}
    assert float(plain["loss"]) == pytest.approx(float(metrics["loss"]))


WRONG = {
    "a rate above 1": ({"fill_in_the_middle": {"rate": 1.5}}, "fill_in_the_middle: rate=1.5 must lie in 0 to 1"),
    "a rate below 0": ({"fill_in_the_middle": {"spm_rate": -0.1}}, "spm_rate=-0.1 must lie in 0 to 1"),
    "no rate": ({"fill_in_the_middle": {"rate": float("nan")}}, "rate=nan must lie in 0 to 1"),
    "one sentinel": ({"fill_in_the_middle": {"prefix": "<a>", "suffix": "<a>"}}, "suffix and middle must differ"),
    "targets of other tokens": (
        {"fill_in_the_middle": {"rate": 0.5}, "targets": {"weight": 0.5}},
        "fill_in_the_middle.rate rearranges them; make one of them 0",
    ),
    "no period": ({"repeats": {"min_period": 0}}, "min_period=0 must be positive"),
    "periods the wrong way": ({"repeats": {"min_period": 9, "max_period": 8}}, "and max_period=8 no less"),
    "once": ({"repeats": {"max_count": 1}}, "max_count=1 must be 2 or more: once is no repetition"),
    "a mask": ({"repeats": {"mask": "spans"}}, "config objective.repeats.mask='spans' is not a choice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line(case):
    tree, message = WRONG[case]
    with pytest.raises(UserError) as error:
        parse(ObjectiveConfig, tree, "objective")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_repetitions_that_no_row_holds_are_refused():
    with pytest.raises(UserError, match=r"looks for 32 times 1 tokens, which are 32, and a row holds 31"):
        require_room(MODEL, SPAN, 31)
    require_room(MODEL, SPAN, 32)
    require_room(MODEL, dataclasses.replace(SPAN, repeats=RepeatsConfig()), 8)
