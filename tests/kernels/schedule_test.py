"""Every pair of tokens that see each other lies in a pair of blocks that is visited, once, and masked if need be."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention.schedule import Blocks, by_key, by_query


def visible_by_hand(B, S, ids, window):
    distance = np.arange(S)[:, None] - np.arange(S)
    seen = np.broadcast_to(distance >= 0, (B, S, S))
    if window is not None:
        seen = seen & (distance < window)
    return seen & (ids[:, :, None] == ids[:, None]) if ids is not None else seen


def pairs(schedule, stays: int) -> list[tuple[int, int, int, bool]]:
    """(batch entry, block that stays, the other, masked) in order."""
    count = int(schedule.count)
    row, move = np.asarray(schedule.stays_P)[1 : count + 1], np.asarray(schedule.moves_P)[:count]
    return [(r // stays, r % stays, m >> 1, bool(m & 1)) for r, m in zip(row.tolist(), move.tolist())]


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(data=st.data())
def test_blocks_are_left_out_only_where_nothing_is_seen(data):
    t, s = data.draw(st.sampled_from([(1, 2), (2, 2), (4, 2), (2, 8)]))
    S, B = max(t, s) * data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    window = data.draw(st.none() | st.integers(1, S))
    ids = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=B * S, max_size=B * S))
    in_order = data.draw(st.booleans())
    if ids is not None:
        ids = np.array(ids).reshape(B, S)
        ids = np.sort(ids, axis=1) if in_order else ids
    T = t * data.draw(st.integers(1, S // t))
    first = data.draw(st.integers(0, S - T)) if T < S else None  # of a stretch, wherever it begins
    blocks = Blocks(t, s, T // t, S // s)
    seen = visible_by_hand(B, S, ids, window)[:, first or 0 :][:, :T].reshape(B, T // t, t, S // s, s)
    some, whole = seen.any((2, 4)), seen.all((2, 4))
    unseen = ~some.any(1, keepdims=True) & (np.arange(blocks.I)[:, None] == 0)
    given_ids = None if ids is None else jnp.asarray(ids)
    for make, axes, stays in ((by_query, (0, 1, 2), blocks.I), (by_key, (0, 2, 1), blocks.J)):
        found = pairs(jax.jit(make, static_argnums=(0, 1))(blocks, B, given_ids, window, first), stays)
        assert sorted(found) == found
        assert len({pair[:3] for pair in found}) == len(found)
        visited = {pair[:3]: pair[3] for pair in found}
        for place in np.argwhere(some.transpose(axes)).tolist():
            assert tuple(place) in visited
        for place, masked in visited.items():
            assert masked or whole.transpose(axes)[place]
        if ids is None or in_order:  # then no pair of blocks is visited in vain
            in_vain = unseen.sum() if make is by_key else 0  # but to write that the gradient of its keys is 0
            assert len(found) == some.sum() + in_vain
        assert {pair[:2] for pair in found} == {(b, i) for b in range(B) for i in range(stays)}


@pytest.mark.parametrize("window", [None, 3])
def test_without_data_the_list_is_known_before_it_runs(window):
    assert isinstance(by_query(Blocks(2, 2, 4, 4), 2, None, window).count, int)
