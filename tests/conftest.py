"""Shared by all tests: the CPU, a small corpus, and a workdir that has been through the whole line."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # before anything imports JAX
# The same tiny runs are started again and again; a smoke run takes 7 s instead of 15 when nothing is compiled anew.
OWNS_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ  # the workers of several share that of the first
if OWNS_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="quintet-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as JAX's own tests: half the time of compiling

import pytest

from lab import launch, make_corpus, smoke


def pytest_unconfigure() -> None:
    """Nothing compiled outlives the tests: another version of JAX or of this machine's CPU begins anew."""
    if OWNS_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled() -> Iterator[None]:
    """After each file: all programs of all tests would take 7 GB, and 40,000 of the 65,530 mappings of a process."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text files."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A workdir in which the whole recipe has run, once for all tests; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = launch(*smoke(workdir, corpus), env=os.environ)  # a real process, with another seed of hashes
    assert result.returncode == 0, result.stderr
    return workdir
