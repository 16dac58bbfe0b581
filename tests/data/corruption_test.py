"""Every file of token shards, corrupted in every way we know: noticed, or without effect, and never a wrong token."""

import pytest
from chaos.corrupt_shards import check


def test_no_corruption_gives_a_wrong_token(tmp_path):
    rows = check(tmp_path / "tokens", seed=0, count=150)
    assert sum(row.detected for row in rows) > 80


@pytest.mark.slow
def test_no_corruption_of_many_gives_a_wrong_token(tmp_path):
    rows = check(tmp_path / "tokens", seed=1, count=2000)
    assert len(rows) == 9
