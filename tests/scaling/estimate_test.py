"""What shapes say of memory, beside what XLA counted when it compiled the same step."""

import importlib.util

import pytest

import launch
from lab import ROOT
from scaling.chips import CHIPS, parse_topology
from scaling.compiled import compile_lowered
from scaling.estimate import Estimate, estimate
from scaling.plan import chosen
from scaling.serving import serving
from scaling.topology import lower_step
from train.run import Run, make_program
from train.sharding import abstract_mesh

# Config, what is changed of it, topology, slices, arguments and temporaries of `memory_analysis()`, libtpu 0.0.51:
# from plan.json of `launch.py plan --config=... --topology=... [--slices=...]`.
COMPILED = [
    ("smollm3_3b", {}, "v5e:16x16", 1, 1_155_261_952, 10_937_745_408),
    ("smollm3_3b", {}, "v5p:4x4x4", 1, 4_615_071_232, 40_297_136_128),
    ("smollm3_3b", {}, "v6e:16x16", 1, 1_155_261_952, 11_128_307_712),
    ("smollm3_3b", {"batch.rows": 1024}, "v5e:16x16", 2, 578_807_296, 10_848_370_688),
    ("smollm3_64k", {}, "v5e:16x16", 1, 146_368_000, 6_171_983_872),
    ("baguettotron", {"mesh.replica": 1}, "v5e:4x4", 1, 274_396_672, 4_322_492_416),
    ("baguettotron", {}, "v5e:4x4", 1, 3_946_640_896, 7_151_960_064),
    ("llama2_7b", {}, "v4:4x4x4", 1, 1_268_303_360, 25_446_006_784),
    ("llama2_7b", {"train.microbatches": 16}, "v4:4x4x4", 1, 1_268_303_360, 13_614_628_864),
]


def open_run(name: str, changed: dict[str, object]) -> Run:
    flags = [f"--config.{key}={value}" for key, value in changed.items()]
    return launch.open_experiment(launch.parse_arguments([f"--config={ROOT}/experiments/{name}.py", *flags])).training


def estimated(run: Run, topology: str, slices: int = 1) -> Estimate:
    place = parse_topology(topology, slices)
    mesh, stages = abstract_mesh(run.mesh, place.devices, slices), run.batch.plan(run.train.steps)
    return estimate(run, place, stages[chosen(stages, None)], make_program(run, mesh).abstract, mesh)


@pytest.mark.parametrize(("name", "changed", "topology", "slices", "arguments", "temporaries"), COMPILED)
def test_the_estimate_is_within_15_percent_of_what_was_compiled(
    name, changed, topology, slices, arguments, temporaries
):
    found = estimated(open_run(name, changed), topology, slices)
    assert found.arguments == pytest.approx(arguments, rel=0.001)
    assert found.total == pytest.approx(arguments + temporaries, rel=0.15)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu wheel for this platform")
@pytest.mark.parametrize("remat", ["none", "full", "attention", "branches", "dots"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_estimate_is_within_15_percent_of_what_is_compiled(remat, microbatches):
    shape = {"vocab_size": 32_768, "num_layers": 8, "d_model": 1024, "num_heads": 8, "num_kv_heads": 2, "d_ff": 4096}
    changed = {f"model.{key}": value for key, value in shape.items()}
    changed |= {"model.remat": remat, "train.microbatches": microbatches, "mesh.replica": 1}
    run = open_run("smollm3_3b", changed | {"batch.rows": 32, "batch.row_length": 2048})
    memory = compile_lowered(lower_step(run, "v5e:4x4"), "test").memory
    found = estimated(run, "v5e:4x4")
    assert found.arguments == pytest.approx(memory.arguments, rel=0.001)
    assert found.total == pytest.approx(memory.arguments + memory.temporaries, rel=0.15)


def test_offloaded_moments_lie_in_the_host():
    there = estimated(open_run("smollm3_3b", {"train.offload_optimizer": True}), "v5e:16x16")
    here = estimated(open_run("smollm3_3b", {}), "v5e:16x16")
    assert there.host == here.optimizer
    assert there.arguments == here.arguments - here.optimizer


def test_what_is_not_kept_is_computed_again():
    ways = [
        estimated(open_run("smollm3_3b", {"model.remat": name}), "v5e:16x16") for name in ("full", "branches", "none")
    ]
    assert ways[0].saved < ways[1].saved < ways[2].saved
    assert ways[0].compute > ways[1].compute > ways[2].compute


def test_each_axis_splits_what_it_should():
    plain = estimated(open_run("smollm3_3b", {"mesh.replica": 1}), "v5e:16x16")
    tensor = estimated(open_run("smollm3_3b", {"mesh.replica": 1, "mesh.tensor": 2}), "v5e:16x16")
    copies = estimated(open_run("smollm3_3b", {"mesh.replica": 4}), "v5e:16x16")
    assert copies.parameters == pytest.approx(4 * plain.parameters, rel=0.05)
    assert tensor.tables == plain.tables / 2
    assert tensor.saved < 1.2 * plain.saved  # twice the tokens, half of the heads and features


def test_serving_by_bandwidth():
    model = open_run("smollm3_3b", {}).model
    own = serving(model, CHIPS["v5e"], 4096)
    assert own.cache_per_token == 2 * 2 * 36 * 4 * 128  # bytes, keys and values, layers, heads, their size
    assert own.devices == 1
    assert own.single == pytest.approx(819e9 / (2 * model.num_parameters + 4096 * own.cache_per_token))
    assert own.weights + own.batch * own.cache <= CHIPS["v5e"].usable < own.weights + (own.batch + 1) * own.cache
    large = serving(open_run("llama2_7b", {}).model, CHIPS["v5e"], 4096)
    assert large.devices == 1
    assert serving(open_run("llama2_7b", {}).model, CHIPS["v5e"], 65_536).devices == 4
