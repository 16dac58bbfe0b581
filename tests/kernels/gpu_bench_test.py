"""benchmarks/gpu.py where it cannot measure: one line, exit code 2; and a section that fails leaves the others.

benchmarks/muon_gpu.py likewise, and as a whole on a CPU.
"""

import json
import os
import runpy
import subprocess
import sys

import jax
import pytest

from scaling.cuda import CHIPS, compile_for_gpu

PAGE, MUON = "benchmarks/gpu.py", "benchmarks/muon_gpu.py"


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


@pytest.mark.parametrize("command", [(PAGE, "--only=loss"), (MUON,)], ids=[PAGE, MUON])
def test_without_a_gpu_one_line_says_so(command):
    code, line = run(*command)
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


def muon(monkeypatch, *options):
    """(exit code, the module's names): one implementation, one round, on a CPU."""
    monkeypatch.syspath_prepend("benchmarks")
    monkeypatch.setattr(sys, "argv", [MUON, "--platform=cpu", "--layers=2", "--width=16", *map(str, options)])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = runpy.run_path(MUON)["main"].__globals__
    monkeypatch.setitem(names, "IMPLEMENTATIONS", {"gpu": (), "cpu": ("xla",)})
    monkeypatch.setitem(names, "COEFFICIENTS", ("standard",))
    monkeypatch.setitem(names, "ROUNDS", 1)
    monkeypatch.setitem(names, "BUSY", 1e-9)
    monkeypatch.setitem(names, "FAILURES", [])
    return names["main"](), names


def rows_of(page):
    """Cells of the table by the first, the heading left out."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells[2:]}


def test_muon_stands_beside_a_process_that_times_its_own(monkeypatch, capsys, tmp_path):
    about = {
        "version": "torch 0",
        "updates": {"peer": {"coefficients": "standard", "rms": 0.25}},
        "left_out": {"other": "RuntimeError: no Triton"},
    }
    python, page = tmp_path / "python", tmp_path / "page.md"
    python.write_text(
        f"#!{sys.executable} -S\nimport json, sys\nprint({json.dumps(about)!r}, flush=True)\n"
        "for line in sys.stdin:\n    asked = json.loads(line)\n"
        "    assert (asked['name'], asked['count'] > 0) == ('peer', True)\n"
        "    print(json.dumps({'seconds': 0.25}), flush=True)\n"
    )
    python.chmod(0o755)
    (tmp_path / "muon.py").touch()
    code, names = muon(monkeypatch, f"--muon={tmp_path}", f"--torch-python={python}", f"--output={page}")
    assert code == 0
    rows = rows_of(page.read_text())
    assert list(rows) == ["ours, xla, standard", "peer"]
    assert rows["peer"][:3] == ["standard", "250.00", "250.00 to 250.00"]
    assert rows["ours, xla, standard"][4] == "1.00"
    assert page.read_text() in capsys.readouterr().out
    for line in ("PyTorch's side: torch 0.", "2 layers of width 16, 6,144 parameters", "- other: RuntimeError: no T"):
        assert line in page.read_text()
    # Square matrices have updates of 1 / sqrt(16) a coefficient, up projections twice that, down projections half.
    singular = float(rows["ours, xla, standard"][-1]) / ((4 / 16 + 4 * 4 / 64 + 4 / 64) / 12) ** 0.5
    assert 0.68 < singular < 1.13
    assert names["parameter_shapes"](12, 768)["layers/attention/output"] == (12, 6, 128, 768)


def test_muon_without_torch_says_so(monkeypatch, capsys, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError")
    (tmp_path / "muon.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    code, names = muon(monkeypatch, f"--muon={tmp_path}")
    assert code == 0
    assert len(rows_of(capsys.readouterr().out)) == 1
    assert names["FAILURES"] == [
        f"PyTorch: no torch in {sys.executable}; name another interpreter with --torch-python"
    ]


def test_a_checkout_without_its_file_is_refused(monkeypatch, capsys, tmp_path):
    assert muon(monkeypatch, f"--speedrun={tmp_path}")[0] == 2
    assert (
        capsys.readouterr().out == f"{MUON}: --speedrun={tmp_path} has no train_gpt.py; name a checkout that has it\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_the_update_of_124m_compiles(chip, monkeypatch):
    """By XLA's compiler for GPUs, in little more than one extra copy of the momentum."""
    pytest.importorskip("jax_plugins.xla_cuda13", reason="the CUDA compiler is not installed")
    monkeypatch.syspath_prepend("benchmarks")
    names = runpy.run_path(MUON)
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in names["parameter_shapes"](12, 768).items()
    }
    optimizer, update = names["program"]("polar_express", "gpu")
    compiled = compile_for_gpu(chip, update, params, jax.eval_shape(optimizer.init, params), params)
    assert compiled.as_text().count("__gpu$xla.gpu.triton") == 4  # two products, for each of two shapes
    momentum = 4 * 12 * 12 * 768**2
    assert compiled.memory_analysis().temp_size_in_bytes < 1.05 * momentum
