"""The verb `plan`, from its command line to plan.json: with the TPU compiler, without it, and for GPUs."""

import importlib.util
import re
import shutil

import pytest

import launch
from plans_lab import plan
from scaling.chips import CHIPS, chip_of, parse_topology
from scaling.compiled import largest_buffers, read_text
from scaling.search import nearest
from scaling.step_time import Collective
from scaling.topology import CHIPS as COMPILED_CHIPS
from scaling.warnings import unexpected

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="no libtpu wheel for this platform: the TPU compiler is missing",
)


@pytest.fixture
def without_compiler(monkeypatch):
    """As on a machine without libtpu."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else real(name, *rest)
    )


@pytest.fixture(scope="module")
def compiled(config, tmp_path_factory):
    """A plan that XLA compiled once, for all tests that look at it."""
    workdir = tmp_path_factory.mktemp("compiled")
    code, found = plan(config, workdir, "--topology=v5e:2x2")
    assert code == 0
    return workdir, found


@pytest.mark.slow
@needs_libtpu
def test_a_compiled_plan_has_all_its_parts(compiled):
    workdir, found = compiled
    assert found["source"] == "compiled"
    memory, time = found["memory"], found["time"]
    assert memory["fits"]
    assert memory["arguments"] >= memory["parameters"] + memory["optimizer"] > 0.7 * memory["arguments"]
    assert time["outside_attention"] == pytest.approx(
        time["compute"] + sum(time["kernels"].values()) + time["exposed"]
    )
    assert time["total"] == pytest.approx(time["outside_attention"] + time["attention"])
    assert 0 < time["mfu"] < 1
    assert found["run"]["chip_hours"] == pytest.approx(found["run"]["seconds"] / 3600 * 4)
    assert found["warnings"] == []
    page = (workdir / "plan" / "plan.html").read_text()
    assert page.count("<svg") == 4  # two pictures, each for a desktop and a phone
    assert f"{found['parameters']:,}" in page


@pytest.mark.slow
@needs_libtpu
def test_the_estimate_is_within_15_percent(compiled):
    memory, guess = compiled[1]["memory"], compiled[1]["estimate"]
    assert guess["arguments"] == pytest.approx(memory["arguments"], rel=0.02)
    assert guess["total"] == pytest.approx(memory["arguments"] + memory["temporaries"], rel=0.15)


@pytest.mark.slow
@needs_libtpu
def test_cycles_are_those_of_a_plain_count(compiled):
    """Estimates at the ends of lines times the trips of the loops around them, counted without the parser."""
    workdir, found = compiled
    text = read_text(next((workdir / "plan" / "compiled").glob("*.gz")))
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1]

    def cycles(name):
        total = 0
        for line in bodies[name].splitlines():
            if known := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(known[1])
            elif loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                trips = max(map(int, re.findall(r" constant\((\d+)\)", bodies[loop[1]])), default=1)
                total += trips * cycles(loop[2])
            elif called := re.search(r" (?:fusion|call|async-start)\(.*(?:calls|to_apply)=%?([\w.\-]+)", line):
                total += cycles(called[1])
        return total

    assert found["time"]["compute"] == pytest.approx(cycles(entry) / CHIPS["v5e"].clock)


@pytest.mark.slow
@needs_libtpu
def test_the_same_plan_is_not_compiled_again(compiled, config, tmp_path, capsys):
    shutil.copytree(compiled[0], tmp_path, dirs_exist_ok=True)
    _, found = plan(config, tmp_path, "--topology=v5e:2x2")
    said = capsys.readouterr()
    assert "compiled already" in said.err
    assert found["time"] == compiled[1]["time"]
    first = said.out.index("step time outside attention")
    assert first < said.out.index("attention  ", first + 30) < said.out.index("MFU")
    assert "fits" in said.out
    assert "DOES NOT" not in said.out


@needs_libtpu
def test_what_does_not_fit_says_what_would(config, tmp_path, capsys):
    own = ["--config.batch.rows=65536", "--config.model.remat=none"]
    code, found = plan(config, tmp_path, "--topology=v5e:2x2", *own)
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == said.err.count("plan:") + 1  # progress, then one line
    assert not found["memory"]["fits"]
    assert found["memory"]["buffers"][0]["bytes"] > 1e9
    assert re.search(r"small does not fit v5e:2x2: .* of 15.75 GiB .* would fit", said.err)
    assert "DOES NOT FIT" in said.out
    flags = re.search(r"(--config\.train\.microbatches=\d+)", said.err)[1]
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}", *own, flags])
    run = launch.open_experiment(arguments).training
    assert nearest(run, parse_topology("v5e:2x2"), run.batch.plan(run.train.steps)[0]) is not None


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], r"plan needs --topology=KIND:SHAPE, for example v5e:16x16"),
        (["--topology=v9:2x2"], r"topology v9:2x2 is of no known kind; did you mean v4\?; for example"),
        (["--topology=v5e:2"], r"topology v5e:2 is not of the form v5e:AxB"),
        (["--topology=v5e:3x7"], r"topology v5e:3x7 is none that TPU v5e has: 1x1, 2x2, 2x4, .*, 16x16"),
        (
            ["--topology=v4:64x64x64"],
            r"none that TPU v4 has: 2x2x1, .*, or AxBxC of multiples of 4 up to 4,096",
        ),
        (["--topology=h100:2x2"], r"topology h100:2x2 is not of the form h100:NUMBER"),
        (["--topology=h100:8", "--slices=2"], r"--slices=2 is for TPUs"),
        (["--topology=h100:8", "--stage=2"], r"--stage=2 is not a stage of this config; it has 1 to 1"),
        (["--topology=h100:8", "--config.mesh.tensor=3"], r"config mesh: fsdp 2 x tensor 3 is not the 8 devices"),
        (["--topology=h100:16", "--config.mesh.tensor=16"], r"config mesh: tensor=16 does not divide K=1 of params"),
        (["--topology=h100:64"], r"config batch.rows=32 is not a multiple of the 64 devices"),
        (["--topology=h100:3", "--search"], r"no mesh of 3 devices splits 32 rows of 512 tokens"),
    ],
)
def test_bad_input_is_one_line(config, tmp_path, capsys, flags, line):
    code, found = plan(config, tmp_path, *flags)
    assert (code, found) == (2, None)
    said = capsys.readouterr().err
    assert re.search(line, said), said
    assert said.count("\n") == 1


@pytest.mark.usefixtures("without_compiler")
def test_without_the_compiler_it_is_computed(config, tmp_path, capsys):
    code, found = plan(config, tmp_path, "--topology=v5e:2x2")
    assert code == 0
    assert found["source"] == "computed"
    assert "pip install libtpu" in capsys.readouterr().out
    assert found["time"]["total"] > found["time"]["ideal"]


def test_gpus_are_computed_and_it_is_said(config, tmp_path, capsys):
    code, found = plan(config, tmp_path, "--topology=h100:8")
    assert code == 0
    assert "for GPUs nothing is compiled here" in capsys.readouterr().out
    assert found["topology"] | {"device_kind": 0} == {
        "name": "h100:8", "slices": 1, "devices": 8, "chips": 8, "hosts": 1, "chip": "H100 SXM", "device_kind": 0,
    }  # fmt: skip


def test_offloaded_moments_take_time_and_say_so(config, tmp_path, capsys):
    _, here = plan(config, tmp_path, "--topology=h100:8")
    capsys.readouterr()
    _, there = plan(config, tmp_path, "--topology=h100:8", "--config.train.offload_optimizer=True")
    moved = 2 * there["memory"]["host"] / CHIPS["h100"].host_link
    assert here["time"]["offload"] == 0
    assert there["time"]["offload"] == pytest.approx(moved)
    assert there["time"]["total"] == pytest.approx(here["time"]["total"] + moved)
    text, page = capsys.readouterr().out, (tmp_path / "plan" / "plan.html").read_text()
    assert re.search(r"moments from the host and back +[\d.]+ ms  \(bytes at an assumed link speed\)", text)
    assert "64 GB/s a device each way" in text
    assert re.search(r"<td>moments from the host and back</td><td>[\d.]+ ms</td><td>\d+\.\d%</td>", page)


def test_whether_the_shards_will_do(config, finished, tmp_path, capsys):
    for name in ("curated", "tokenizer", "tokens"):
        (tmp_path / name).symlink_to(finished / name)
    _, found = plan(config, tmp_path, "--topology=h100:8")
    assert found["data"]["epochs"] == pytest.approx(found["run"]["tokens"] / found["data"]["tokens"])
    assert "epochs: each is read more than once, more often than the four times" in capsys.readouterr().out
    plan(config, tmp_path, "--topology=h100:8", "--config.train.steps=1", "--config.batch.rows=16")
    assert "epochs: enough" in capsys.readouterr().out
    stages = "[{'tokens': 655360, 'mixture': {'nobody': 1.0}}]"
    plan(config, tmp_path, "--topology=h100:8", f"--config.batch.stages={stages}", "--config.train.steps=0")
    assert "epochs: refused, " in capsys.readouterr().out


def test_the_longest_stage_is_planned_unless_another_is_asked_for(config, tmp_path):
    stages = "[{'tokens': 1000000}, {'tokens': 500000, 'row_length': 1024}]"
    own = [f"--config.batch.stages={stages}", "--config.train.steps=0", "--topology=h100:8"]
    _, first = plan(config, tmp_path, *own)
    _, second = plan(config, tmp_path, *own, "--stage=2")
    assert (first["stage"]["number"], second["stage"]["number"]) == (0, 1)
    assert second["stage"]["row_length"] == 1024
    assert first["run"]["tokens"] == second["run"]["tokens"] == pytest.approx(1.5e6, rel=0.01)


def gathered(*shape, devices=4):
    return Collective("all-gather", (shape,), devices, 12, 1.0, False, 1.0, "")


def test_unexpected_exchanges_are_named(config, tmp_path):
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}"])
    run = launch.open_experiment(arguments).training
    stage = run.batch.plan(run.train.steps)[0]

    def told(*shape, context=1):
        return unexpected((gathered(*shape),), run.model, stage, 8, context, 1)

    assert (
        told(1, 512, 2048)
        == told(2048, 512)
        == told(4096, 512)
        == told(512, 2, 128)
        == told(
            64,
        )
        == []
    )
    assert told(2, 1024, 512) == []  # part of a table
    assert told(6, 512, 2048) == [
        "unexpected all-gather of all layers' feed-forward weights at once: 6x512x2048, 12 times a step"
    ]
    assert "of logits" in told(2, 512, 4096)[0]
    assert "of hidden states" in told(16, 512, 512)[0]
    assert told(8, 512, 128, context=4) == []  # keys and values of whole rows
    update = gathered(10, 1, 64, 2048)._replace(op_name="jit(step)/owners/shard_map/all_gather")
    assert unexpected((update,), run.model, stage, 8, 1, 1) == []  # what replicas orthogonalised
    update = update._replace(op_name="jit(step)/owners/shard_map")
    assert len(unexpected((update,), run.model, stage, 8, 1, 1)) == 1


def test_on_v4_gathers_are_sums(config, tmp_path):
    """Of arrays that are zero but for a device's part; logits are never summed, hidden states only over `tensor`."""
    arguments = launch.parse_arguments(["plan", f"--config={config}", f"--workdir={tmp_path}"])
    run = launch.open_experiment(arguments).training
    stage = run.batch.plan(run.train.steps)[0]

    def told(*shape, tensor=1):
        summed = gathered(*shape)._replace(opcode="all-reduce")
        return unexpected((summed,), run.model, stage, 8, 1, tensor)

    assert "all-reduce of logits" in told(2, 512, 4096)[0]
    assert "all-reduce of hidden states" in told(16, 512, 512)[0]
    assert told(16, 512, 512, tensor=2) == []
    assert told(6, 512, 2048) == told(4096, 512) == told(1024, 512) == told(6, 512) == []  # gradients


def test_buffers_do_not_overlap():
    assignment = """\
BufferAssignment:
allocation 0: size 900, page 0, parameter 0:
 value: <1 a @0> (size=900,offset=0): f32[225]{0}
allocation 1: size 600, page 0, preallocated-temp:
 value: <2 b.1 @0> (size=400,offset=0): f32[100]{0}
 value: <3 c{0} @0> (size=300,offset=200): f32[75]{0}
 value: <4 d @0> (size=200,offset=400): bf16[100]{0}
allocation 2: size 9999, color 1, page 0, preallocated-temp:
 value: <5 e @0> (size=9999,offset=0): f32[100]{0}
"""
    found = largest_buffers(assignment, {"b.1": "jit(step)/dot_general"})
    assert [(one.bytes, one.shape, one.op_name) for one in found] == [
        (400, "f32[100]", "jit(step)/dot_general"),
        (200, "bf16[100]", "d"),
    ]


def test_chips_are_those_that_are_compiled_for_and_found():
    assert COMPILED_CHIPS.keys() <= CHIPS.keys()
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert chip_of("cpu") is None
