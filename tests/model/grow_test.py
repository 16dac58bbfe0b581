import numpy as np
import pytest

from core.errors import UserError
from model.config import ModelConfig
from model.grow import BLOCK, NewIds, grow, grow_embedding
from model.transformer import apply, init, logits

TABLE_VD = np.random.default_rng(0).normal(1, 0.5, (10, 6)).astype(np.float32)
NEW = NewIds(10, np.array([3, 4, 4, 9, 0]), np.array([0, 2, 4, 5]))  # three new ids: 3 4, 4 9, 0


@pytest.mark.parametrize("how", ["mean_of_pieces", "mean", "random"])
def test_old_rows_stay_to_the_bit(how):
    before = TABLE_VD.tobytes()
    grown = grow_embedding(TABLE_VD, NEW, 16, how, seed=1)
    assert grown.shape == (16, 6)
    assert grown.dtype == np.float32
    assert grown[:10].tobytes() == before == TABLE_VD.tobytes()


def test_a_new_row_is_the_mean_of_its_pieces():
    grown = grow_embedding(TABLE_VD, NEW, 13)
    asked = [TABLE_VD[[3, 4]].mean(axis=0), TABLE_VD[[4, 9]].mean(axis=0), TABLE_VD[0]]
    np.testing.assert_allclose(grown[10:], asked, rtol=1e-6)


def test_the_other_ways():
    np.testing.assert_allclose(grow_embedding(TABLE_VD, NEW, 13, "mean")[10:], [TABLE_VD.mean(axis=0)] * 3, rtol=1e-6)
    many = NewIds(10, np.zeros(5000, int), np.arange(5001))
    drawn = grow_embedding(TABLE_VD, many, 5010, "random", seed=3)[10:]
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(TABLE_VD.std(), rel=0.02)
    assert len(np.unique(drawn, axis=0)) == 5000
    assert (drawn == grow_embedding(TABLE_VD, many, 5010, "random", seed=3)[10:]).all()
    assert (drawn != grow_embedding(TABLE_VD, many, 5010, "random", seed=4)[10:]).any()


def test_more_rows_than_a_block():
    pieces = np.random.default_rng(1).integers(0, 10, (2 * BLOCK + 7, 3))
    many = NewIds(10, pieces.ravel(), np.arange(0, pieces.size + 1, 3))
    np.testing.assert_allclose(
        grow_embedding(TABLE_VD, many, many.end)[10:], TABLE_VD[pieces].mean(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("vocab_size", [12, 16])
def test_new_ids_take_the_rows_of_padding_first(vocab_size):
    new = NewIds(8, np.array([3, 4, 7]), np.array([0, 2, 3]))  # two new ids in a table padded to 10 and more rows
    padded = np.concatenate([TABLE_VD, np.full((2, 6), 9, np.float32)])
    grown = grow_embedding(padded, new, vocab_size)
    assert (grown[:8] == TABLE_VD[:8]).all()
    np.testing.assert_allclose(grown[8:10], [TABLE_VD[[3, 4]].mean(axis=0), TABLE_VD[7]], rtol=1e-6)
    assert (grown[10:12] == 9).all()  # padding that no id takes
    assert np.abs(grown[12:]).sum() > 0 or vocab_size == 12
    assert np.isfinite(grown).all()


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match=r"^vocab_size=12 is too small for 10 rows of the model and 13 ids"):
        grow_embedding(TABLE_VD, NEW, 12)
    with pytest.raises(UserError, match=r"^the model has 9 rows for the 10 ids of its tokenizer"):
        grow_embedding(TABLE_VD[:9], NEW, 13)


def test_a_grown_model_says_the_same_of_old_ids():
    config = ModelConfig(10, num_layers=1, d_model=6, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=8)
    params = init(config, 0)
    grown_config, grown = grow(config, params, NEW, 16)
    assert grown_config.vocab_size == 16
    assert grown["layers"] is params["layers"]
    tokens_BT = np.array([[1, 5, 9, 2]])
    inputs = tokens_BT, np.ones_like(tokens_BT), np.arange(4)[None]
    before = logits(config, params, apply(config, params, *inputs).hidden_BTD)
    after = logits(grown_config, grown, apply(grown_config, grown, *inputs).hidden_BTD)
    np.testing.assert_allclose(after[..., :10], before, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(after[..., 10], (before[..., 3] + before[..., 4]) / 2, rtol=1e-4, atol=1e-6)


def test_an_untied_head_grows_too():
    config = ModelConfig(10, num_layers=1, d_model=6, num_heads=1, num_kv_heads=1, head_dim=4, d_ff=8)
    params = {"embedding": TABLE_VD, "head": -TABLE_VD, "final_norm": {}}
    _, grown = grow(config, params, NEW, 16)
    assert (grown["head"][:13] == -grown["embedding"][:13]).all()
    assert (grown["head"][13:] != -grown["embedding"][13:]).any()  # padding is drawn for each
    assert params["head"] is not grown["head"]
