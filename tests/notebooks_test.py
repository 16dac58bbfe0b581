"""Notebooks run from top to bottom on a finished workdir, and are stored without output."""

import nbformat
import pytest
from nbclient import NotebookClient

from lab import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, finished, corpus, tmp_path, monkeypatch):
    config = tmp_path / "run.py"
    config.write_text(SMOKE.format(corpus=corpus))
    monkeypatch.setenv("QUINTET_WORKDIR", str(finished))
    monkeypatch.setenv("QUINTET_CONFIG", str(config))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    text = "".join(output.get("text", "") for output in shown)
    assert "bits per byte on" in text
    assert "nats for" in text
    assert "def main(" in text


# The config the workdir of the tests was made with; see lab.smoke.
SMOKE = """
from experiments import smoke

def get_config():
    config = smoke.get_config()
    with config.unlocked():
        config.data.path = "{corpus}"
        config.data.heldout_fraction = 0.2
        config.tokenizer.vocab_size = 320
        config.train.steps = 24
    return config
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_clean(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
