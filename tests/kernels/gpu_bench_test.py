"""benchmarks/gpu.py where it cannot measure: one line, exit code 2; and a section that fails leaves the others."""

import os
import runpy
import subprocess
import sys

import pytest

PAGE = "benchmarks/gpu.py"


def run(*options):
    """(exit code, what is printed) in this interpreter with these options."""
    environment = {**os.environ, "PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *options], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_without_packages_one_line_says_what_to_install():
    code, line = run("-S", PAGE)  # no site-packages
    assert (code, line.count("\n")) == (2, 1)
    assert f'{sys.executable} -m pip install "jax[cuda13]" absl-py' in line


def test_without_a_gpu_one_line_says_so():
    code, line = run(PAGE, "--only=loss")
    assert (code, line.count("\n")) == (2, 1)
    assert "JAX finds no GPU here" in line


def test_an_unknown_section_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [PAGE, "--only=errors,los"])
    monkeypatch.syspath_prepend("benchmarks")
    assert runpy.run_path(PAGE)["main"]() == 2
    assert capsys.readouterr().out == "benchmarks/gpu.py: --only has no section 'los'; did you mean loss?\n"


@pytest.mark.parametrize("section", ["loss", "newton_schulz"])
def test_a_section_that_fails_is_a_row(section, monkeypatch, capsys):
    monkeypatch.syspath_prepend("benchmarks")
    sections = runpy.run_path(PAGE)["SECTIONS"]

    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setitem(sections[section].__globals__, "normal", fail)
    heading, _, columns, rows = sections[section]()
    assert rows == [[section, "failed: MemoryError: no room"]]
    assert heading
    assert len(columns) > 1
    assert "no room" in capsys.readouterr().out
