"""What the docs tell people to type exists: make targets, verbs, flags, config keys and files."""

import json
import re
import shlex
from pathlib import Path

import pytest

import launch
from core.config import load_experiment
from lab import ROOT
from model.config import ModelConfig
from model.hf_config import to_hf
from model.presets import preset

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(path: Path) -> list[str]:
    """Lines of code blocks, indented or fenced, and inline code that begins with make or python."""
    text = path.read_text()
    lines = re.findall(r"^(?: {4}|)((?:make|python|\.venv/bin/python) .*)$", text, re.MULTILINE)
    return lines + re.findall(r"`((?:make|python launch\.py|launch\.py) ?[^`]*)`", text)


PUBLISHED = {"atom_32k": "llama-2-7b", "smollm3_128k": "smollm3-3b"}  # what configs start from; else the quickstart's


def open_experiment(words: list[str], folder: Path) -> None:
    """Checks a command's config; a model that it starts from is there with its config.json alone."""
    arguments = launch.parse_arguments(words)
    name = Path(arguments.config).stem
    if "start" in load_experiment(Path(arguments.config), arguments.overrides):
        model = preset(PUBLISHED[name]) if name in PUBLISHED else ModelConfig(4096, 4, 128, 4, 2, 32, 384)
        described = to_hf(model, max_positions=256, bos=1, eos=2, dtype="float32")
        (folder / "config.json").write_text(json.dumps(described))
        arguments.overrides["start.folder"] = str(folder)
    launch.open_experiment(arguments)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_exist(path, tmp_path):
    for line in commands(path):
        words = shlex.split(line.split(" #")[0])
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word]
            assert set(named) <= TARGETS, line
        elif "--help" in words:
            continue
        elif "launch.py" in words[:2]:
            open_experiment(words[words.index("launch.py") + 1 :], tmp_path)
        elif words[1] not in ("-m", "-c"):
            assert (ROOT / words[1]).exists(), line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_config_of_the_folder_is_valid_and_a_lab_note(tmp_path):
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        if path.name == "__init__.py":
            continue
        open_experiment([f"--config={path}"], tmp_path)
        text = path.read_text()
        for word in (f"python launch.py --config={path.relative_to(ROOT)}", "Expected time:", "Expected result:"):
            assert word in text, f"{path.name} does not say {word}"
        assert "TODO" not in text
        assert re.search(r"Expected result: .*\d", text), f"{path.name} names no number"
