"""Shared by all tests: the CPU, a small corpus, and a workdir that has been through the whole line."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports JAX

import pytest

from lab import launch, make_corpus, smoke


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A workdir in which the whole recipe has run, once for all tests; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = launch(*smoke(workdir, corpus))
    assert result.returncode == 0, result.stderr
    return workdir
