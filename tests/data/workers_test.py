"""Processes: all results come, and whoever watches learns how far the work is."""

import pytest

from core.errors import UserError
from curate_lab import die, square, wait_for_file
from data.workers import advance, process_map


@pytest.mark.parametrize("workers", [1, 2])
def test_the_watcher_learns_the_sum(workers):
    told = []
    assert sorted(process_map(square, [1, 2, 3, 4], workers, told.append)) == [1, 4, 9, 16]
    assert told == sorted(told)
    assert told[-1] == 10


def test_the_watcher_is_told_before_any_task_is_done(tmp_path):
    """The tasks wait for what the watcher does once it has heard of both."""
    gate = tmp_path / "gate"

    def watch(done):
        if done == 10:
            gate.touch()

    assert sorted(process_map(wait_for_file, [str(gate)] * 2, 2, watch)) == [str(gate)] * 2


def test_nobody_needs_to_watch():
    advance(3)
    assert sorted(process_map(square, [1, 2], 2)) == sorted(process_map(square, [1, 2], 1)) == [1, 4]


def test_a_worker_that_dies_is_told_in_one_line():
    with pytest.raises(UserError, match="a worker process died"):
        list(process_map(die, [0, 1, 2, 3], 2, lambda _: None))
