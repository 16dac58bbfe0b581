"""Small installs are a feature: what the quickstart needs, counted from the metadata of what is installed."""

import importlib.metadata
import re

from packaging.requirements import Requirement

MOST_PACKAGES = 52


def closure(name: str) -> set[str]:
    """A distribution and all that it requires, with the extras asked for."""
    found: set[tuple[str, str]] = set()
    todo = [(name, "")]
    while todo:
        name, extra = todo.pop()
        key = (re.sub(r"[-_.]+", "-", name).lower(), extra)
        if key in found:
            continue
        found.add(key)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(requirement.name, chosen) for chosen in {"", *requirement.extras}]
    return {name for name, _ in found}


def test_quickstart_installs_few_packages():
    packages = closure("quintet")
    assert {"jax", "flax", "orbax-checkpoint", "grain"} <= packages
    assert len(packages) <= MOST_PACKAGES, sorted(packages)
    assert not packages & {"torch", "tensorflow"}
