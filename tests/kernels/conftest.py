"""What tests of kernels share."""

import logging

import pytest

from kernels import dispatch


@pytest.fixture(autouse=True)
def hear_the_choice(monkeypatch):
    """Of an implementation, also where a run in this process had it said before."""
    monkeypatch.setattr(logging.getLogger("kernels"), "propagate", True)
    dispatch._say.cache_clear()
