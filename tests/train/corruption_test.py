"""Every file of a checkpoint, corrupted in every way we know: noticed, or without effect, and never a wrong value."""

import pytest
from chaos.corrupt_checkpoints import check


@pytest.mark.parametrize("hashed_below", [None, 0], ids=["hashed files", "array files by size"])
def test_no_corruption_gives_a_wrong_value(tmp_path, hashed_below):
    rows = check(tmp_path, hashed_below, seed=0, count=40)
    assert sum(row.cases for row in rows) == 40  # how many are harmless differs: Orbax names its files by chance


@pytest.mark.slow
@pytest.mark.parametrize("hashed_below", [None, 0], ids=["hashed files", "array files by size"])
def test_no_corruption_of_many_gives_a_wrong_value(tmp_path, hashed_below):
    rows = check(tmp_path, hashed_below, seed=1, count=300)
    assert len(rows) == 9
    assert all(row.detected for row in rows if row.kind != "duplicated")
