"""What the docs tell people to type exists: make targets, verbs, flags, config keys and files."""

import re
import shlex
from pathlib import Path

import pytest

import launch
from lab import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(path: Path) -> list[str]:
    """Lines of code blocks, indented or fenced, and inline code that begins with make or python."""
    text = path.read_text()
    lines = re.findall(r"^(?: {4}|)((?:make|python|\.venv/bin/python) .*)$", text, re.MULTILINE)
    return lines + re.findall(r"`((?:make|python launch\.py|launch\.py) ?[^`]*)`", text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_exist(path):
    for line in commands(path):
        words = shlex.split(line.split(" #")[0])
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= TARGETS, line
        elif "--help" in words:
            continue
        elif "launch.py" in words[:2]:
            arguments = launch.parse_arguments(words[words.index("launch.py") + 1 :])
            launch.open_experiment(arguments)
        elif words[1] not in ("-m", "-c"):
            assert (ROOT / words[1]).exists(), line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_config_of_the_folder_is_valid_and_a_lab_note():
    for path in sorted((ROOT / "experiments").glob("*.py")):
        if path.name == "__init__.py":
            continue
        launch.open_experiment(launch.parse_arguments([f"--config={path}"]))
        text = path.read_text()
        for word in (f"python launch.py --config=experiments/{path.name}", "Expected time:", "Expected result:"):
            assert word in text, f"{path.name} does not say {word}"
        assert "TODO" not in text
        assert re.search(r"Expected result: .*\d", text), f"{path.name} names no number"
