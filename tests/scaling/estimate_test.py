"""What shapes say of memory and time, beside what XLA counted when it compiled the same step."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from model.config import MultiToken
from objectives.config import DistillConfig, ObjectiveConfig
from plans_lab import PLANS, Planned, recorded
from scaling.chips import CHIPS, parse_topology
from scaling.compiled import compile_lowered
from scaling.estimate import Estimate, estimate
from scaling.plan import make_plan
from scaling.remat import recomputed
from scaling.serving import serving
from scaling.topology import lower_step
from train.config import MeshConfig
from train.run import Run, abstract_state
from train.sharding import abstract_mesh
from train.teacher import Teacher

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu for this platform")
# How far the estimate of a whole step is from the compiled one: what the fit of `scaling/roofline.py` leaves over.
LEFT_OVER = {
    "SmolLM3-3B, v5e:16x16": 0.118,
    "SmolLM3-3B, v5p:4x4x4": -0.018,
    "SmolLM3-3B, v6e:16x16": -0.108,
    "SmolLM3-3B, 2 slices of v5e:16x16": 0.050,
    "SmolLM3-3B at 65,536, v5e:16x16": 0.040,
    "Baguettotron, v5e:4x4": 0.107,
    "Llama 2 7B, v4:4x4x4": -0.008,
}
# Two more, compiled once: arguments and temporaries of `memory_analysis()`, libtpu 0.0.51.
OTHERS = [
    (Planned("baguettotron", "v5e:4x4", 1, {"mesh.replica": 1}), 274_396_672, 4_322_492_416),
    (Planned("llama2_7b", "v4:4x4x4", 1, {"train.microbatches": 16}), 1_268_303_360, 13_614_628_864),
]


def open_run(name: str, changed: dict[str, object]) -> Run:
    return Planned(name, "", 1, changed).run


def estimated(name: str, changed: dict[str, object], topology: str, slices: int = 1) -> Estimate:
    return Planned(name, topology, slices, changed).estimate


@pytest.mark.parametrize("name", PLANS)
def test_the_estimate_is_within_15_percent_of_what_was_compiled(name):
    found, wanted = PLANS[name].estimate, recorded()[name]
    assert found.arguments == pytest.approx(wanted["arguments"], rel=0.001)
    assert found.total == pytest.approx(wanted["arguments"] + wanted["temporaries"], rel=0.15)
    assert found.seconds == pytest.approx(wanted["total"], rel=0.15)
    assert found.time.attention == pytest.approx(wanted["attention"], rel=1e-4)
    assert found.seconds / wanted["total"] - 1 == pytest.approx(LEFT_OVER[name], abs=0.005)


@pytest.mark.parametrize(("planned", "arguments", "temporaries"), OTHERS)
def test_other_settings_are_within_15_percent(planned, arguments, temporaries):
    assert planned.estimate.arguments == pytest.approx(arguments, rel=0.001)
    assert planned.estimate.total == pytest.approx(arguments + temporaries, rel=0.15)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("name", PLANS)
def test_what_is_compiled_now_fits_and_is_as_estimated(name, tmp_path):
    planned = PLANS[name]
    plan = make_plan(planned.run, planned.place, tmp_path)
    memory, found, time = plan["memory"], plan["estimate"], plan["time"]
    assert memory["fits"], memory
    assert plan["warnings"] == []
    assert found["arguments"] == pytest.approx(memory["arguments"], rel=0.001)
    assert found["total"] == pytest.approx(memory["arguments"] + memory["temporaries"], rel=0.15)
    assert time["total"] == pytest.approx(recorded()[name]["total"], rel=0.01)
    if name == "SmolLM3-3B, v5e:16x16":
        assert time["outside_attention"] <= 1.05


@pytest.mark.slow
@needs_libtpu
def test_rows_shorter_than_the_width_gather_no_logits_either(tmp_path):
    """Llama 2's rows are as long as its hidden states are wide, so that a row of logits looks like a table."""
    planned = Planned("llama2_7b", "v4:4x4x4", 1, {"batch.row_length": 2048})
    assert make_plan(planned.run, planned.place, tmp_path)["warnings"] == []


@pytest.mark.slow
@needs_libtpu
def test_muon_adds_little_to_a_step_on_a_pod(tmp_path):
    """At most 5% of AdamW's step, and no more beside its momentum than another of it."""
    name = "SmolLM3-3B, v5e:16x16"
    planned = PLANS[name]._replace(changed={"optim.optimizer": "muon"})
    plan, adamw = make_plan(planned.run, planned.place, tmp_path), recorded()[name]
    assert plan["time"]["total"] <= 1.05 * adamw["total"]
    momentum = plan["memory"]["arguments"] - plan["memory"]["parameters"]  # the tables' two moments in it
    assert plan["memory"]["temporaries"] <= adamw["temporaries"] + momentum


SMALL = {"vocab_size": 32_768, "num_layers": 8, "d_model": 1024, "num_heads": 8, "num_kv_heads": 2, "d_ff": 4096}


def small_run(modules: MultiToken, taught: bool = False) -> Run:
    """A run whose model may have modules, and a teacher twice as wide."""
    own = open_run("smollm3_3b", {f"model.{key}": value for key, value in SMALL.items()})
    model = dataclasses.replace(own.model, multi_token=modules)
    wide = dataclasses.replace(own.model, d_model=2048, num_heads=16, remat="none", dtype="bfloat16")
    batch = dataclasses.replace(own.batch, rows=32, row_length=2048)
    changes = {"train": dataclasses.replace(own.train, microbatches=1), "mesh": MeshConfig(replica=1)}
    if taught:
        objective = ObjectiveConfig(distill=DistillConfig(teacher="there"))
        changes |= {"objective": objective, "teacher": Teacher(Path("there"), 0, wide, "", "")}
    return dataclasses.replace(own, model=model, batch=batch, **changes)


def estimated_run(run: Run, topology: str) -> Estimate:
    place = parse_topology(topology)
    mesh = abstract_mesh(run.mesh, place.devices, place.slices)
    return estimate(run, place, run.batch.plan(run.train.steps)[0], abstract_state(run), mesh)


def test_modules_and_teachers_are_counted():
    plain = small_run(MultiToken())
    alone, model = estimated_run(plain, "h100:1"), plain.model  # one device, nothing padded
    for kind in ("parallel", "sequential"):
        run = small_run(MultiToken(kind, 3))
        own = estimated_run(run, "h100:1")
        more = run.model.num_parameters - model.num_parameters
        assert own.parameters - alone.parameters == 4 * more
        assert own.modules > alone.modules == 0
        assert own.total > alone.total + 3 * 4 * more  # with two moments
        products = 8 * (2 * run.model.module_matmul_parameters + 2 * model.vocab_size * model.d_model)
        assert (own.time.compute - alone.time.compute) * 0.6 * 989e12 == pytest.approx(32 * 2048 * products)
        assert own.time.attention == pytest.approx(alone.time.attention * (1 + 2 / 8 * 4 / 3))
    run = small_run(MultiToken(), taught=True)
    own = estimated_run(run, "h100:1")
    assert own.teacher == 2 * run.teacher.model.num_parameters
    assert own.arguments == alone.arguments + own.teacher
    products = run.teacher.model.flops_per_token(2048) / 3 + 6 * model.vocab_size * model.d_model
    assert (own.time.compute - alone.time.compute) * 0.6 * 989e12 == pytest.approx(32 * 2048 * products)
    assert dict(own.largest())["parameters of the teacher"] == own.teacher


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("remat", ["none", "full", "attention", "branches", "dots"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_policy_is_within_15_percent_of_what_is_compiled(remat, microbatches):
    changed = {f"model.{key}": value for key, value in SMALL.items()}
    changed |= {"model.remat": remat, "train.microbatches": microbatches, "mesh.replica": 1}
    planned = Planned("smollm3_3b", "v5e:4x4", 1, changed | {"batch.rows": 32, "batch.row_length": 2048})
    memory = compile_lowered(lower_step(planned.run, "v5e:4x4"), "test").memory
    found = planned.estimate
    assert found.arguments == pytest.approx(memory.arguments, rel=0.001)
    assert found.total == pytest.approx(memory.arguments + memory.temporaries, rel=0.15)


def test_offloaded_moments_lie_in_the_host():
    there = estimated("smollm3_3b", {"train.offload_optimizer": True}, "v5e:16x16")
    here = estimated("smollm3_3b", {}, "v5e:16x16")
    assert there.host == here.optimizer
    assert there.arguments == here.arguments - here.optimizer
    assert there.time.offload == 2 * here.optimizer / CHIPS["v5e"].host_link  # there and back
    assert there.seconds == pytest.approx(here.seconds + there.time.offload)


def test_what_is_not_kept_is_computed_again():
    ways = [estimated("smollm3_3b", {"model.remat": name}, "v5e:16x16") for name in ("full", "branches", "none")]
    assert ways[0].saved < ways[1].saved < ways[2].saved
    assert ways[0].time.compute > ways[1].time.compute
    model = open_run("smollm3_3b", {}).model
    policies = [dataclasses.replace(model, remat=name) for name in ("full", "attention", "branches", "none")]
    products = [recomputed(own) for own in policies]
    assert products == sorted(products, reverse=True)
    assert products[-1] == 0


def test_parts_of_few_rows_are_not_liked():
    narrow, wide = ({"mesh.replica": replica} for replica in (4, 8))  # 2,048 rows in 64 parts, and in 32
    assert (
        estimated("smollm3_3b", narrow, "v5e:16x16").seconds
        > 1.05 * estimated("smollm3_3b", wide, "v5e:16x16").seconds
    )


def test_what_travels_between_slices():
    one = estimated("smollm3_3b", {}, "v5e:16x16").time
    two = estimated("smollm3_3b", {"batch.rows": 1024}, "v5e:16x16", 2).time
    model = open_run("smollm3_3b", {}).model
    # Sums of two microbatches: weights in bfloat16, the table's in float32 from both its ends; of 2 slices one half
    # of each of two rounds, a 256th on each chip.
    layers, table = model.num_layers * model.layer_matmul_parameters, model.vocab_size * model.d_model
    assert one.between_slices == 0
    assert two.between_slices == pytest.approx(2 * (2 * layers + 8 * table) / 256 / CHIPS["v5e"].dcn)
    assert two.hidden == pytest.approx(one.hidden + two.between_slices)  # it is shorter than what it hides behind


def test_each_axis_splits_what_it_should():
    plain = estimated("smollm3_3b", {"mesh.replica": 1}, "v5e:16x16")
    tensor = estimated("smollm3_3b", {"mesh.replica": 1, "mesh.tensor": 2}, "v5e:16x16")
    copies = estimated("smollm3_3b", {"mesh.replica": 4}, "v5e:16x16")
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
