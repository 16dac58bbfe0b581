"""The text of a compiled program: what runs how often, and what it costs."""

import math
import re

import pytest

from model.config import ModelConfig
from scaling import hlo
from scaling.chips import parse_topology
from scaling.step_time import step_time

# ruff: noqa: E501 (as XLA writes it)

# Two loops, one inside the other; a fusion with an estimate and one without; exchanges of every kind.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused.1 (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %inner = f32[8,128]{1,0:T(8,128)} add(%p, %p), backend_config={"estimated_cycles":"5"}
}

%fused.2 (p.2: f32[8,128]) -> f32[8,128] {
  %p.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %gathered.1 = bf16[4,256]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=7, replica_groups={{0,1},{2,3}}
}

%all-reduce-scatter (p.3: f32[8,128]) -> f32[4,128] {
  %p.3 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %summed = f32[8,128]{1,0:T(8,128)} all-reduce(%p.3), channel_id=8, replica_groups=[2,2]<=[4], to_apply=%add
}

%inner_body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %known = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused.1, backend_config={"estimated_cycles":"100"}
  %unknown = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused.1
  %kernel = bf16[2,128]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/x/attention_forward/pallas_call"}
  %sum = f32[2,128]{1,0:T(2,128)} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%x, %x)
}

%inner_condition (arg.1: (s32[], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%arg.1, %limit), direction=LT
}

%outer_body (arg.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%arg.2), condition=%inner_condition, body=%inner_body
}

%outer_condition (arg.3: (s32[], f32[8,128])) -> pred[] {
  %arg.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %limit.1 = s32[]{:T(128)} constant(2)
  ROOT %less.1 = pred[]{:T(512)} compare(%arg.3, %limit.1), direction=LT
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %while.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%a), condition=%outer_condition, body=%outer_body
  %async-collective-start = bf16[4,256]{1,0} fusion(%a), kind=kCustom, calls=%fused.2, backend_config={"estimated_cycles":"10"}
  %async-collective-done = bf16[4,256]{1,0} fusion(%a), kind=kCustom, calls=%fused.2, backend_config={"estimated_cycles":"10"}
  %scattered = f32[4,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
  %table = (f32[16,128]{1,0}, bf16[2]{0}) all-gather(%a, %a), channel_id=9, replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}
  ROOT %part = f32[2,128]{1,0} reduce-scatter(%a), channel_id=10, replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}
"""
MODEL = ModelConfig(512, 2, 128, 2, 1, 64, 256)


def runs(name: str) -> int:
    return next(run.times for run in hlo.executed(hlo.parse(PROGRAM)) if run.instruction.name == name)


def test_loops_multiply():
    assert (runs("known"), runs("while.1"), runs("scattered")) == (6, 2, 1)


def test_a_fusion_is_looked_into_only_without_an_estimate():
    names = [run.instruction.name for run in hlo.executed(hlo.parse(PROGRAM))]
    assert names.count("inner") == 1  # that of %unknown
    assert "gathered.1" not in names
    assert sum(run.instruction.cycles * run.times for run in hlo.executed(hlo.parse(PROGRAM))) == 6 * (100 + 5) + 20


def test_groups_are_read_in_all_their_forms():
    found = {i.name: i.groups for body in hlo.parse(PROGRAM).computations.values() for i in body}
    assert found["gathered.1"] == (2, 1)
    assert found["sum"] == (4, 3)
    assert found["summed"] == (2, 1)
    assert found["table"] == (2, 1)
    assert found["part"] == (2, 2)  # transposed: 0 with 2
    assert found["known"] == (0, 0)


def test_exchanges_by_how_they_run():
    topology = parse_topology("v5e:2x2")
    times = step_time(PROGRAM, topology, MODEL, 1024, 256)
    ici = topology.chip.ici
    exposed = {(one.opcode, one.shown): one.bytes for one in times.collectives}
    assert exposed == {
        ("all-reduce", "2x128"): 6 * 2 * 1024,  # its bytes twice, each time
        ("reduce-scatter", "2x128"): 2 * 1024,  # two parts of it
        ("reduce-scatter", "8x128"): 4096,  # an all-reduce and a slice
        ("all-gather", "16x128 + 2"): 16 * 128 * 4 + 4,
    }
    assert math.isclose(times.exposed, sum(exposed.values()) / ici)
    assert math.isclose(times.hidden, 4 * 256 * 2 / ici)  # once, not for its start and its end
    assert math.isclose(times.compute, (630 + 20) / topology.chip.clock)
    assert times.attention > 0
    assert times.unknown == ()


def test_symmetric_products_are_charged_as_plain_ones():
    """By the shape of what is multiplied, not of the result."""
    kernel = "%kernel = bf16[2,128]{1,0} custom-call(%x), "
    product = """%wide = bf16[3,128,640]{2,1,0} copy(%x)
  %kernel = bf16[3,128,128]{2,1,0} custom-call(%blocks, %wide, %wide), """
    text = PROGRAM.replace(kernel, product).replace("attention_forward", "closed_call/newton_schulz_product")
    chip = parse_topology("v5e:2x2").chip
    times = step_time(text, parse_topology("v5e:2x2"), MODEL, 1024, 256)
    assert times.kernels == {"newton_schulz_product": pytest.approx(6 * 2 * 3 * 128 * 128 * 640 / 0.8 / chip.flops)}
    assert times.unknown == ()


def test_what_is_not_known_is_told():
    text = PROGRAM.replace("attention_forward", "something_new")
    times = step_time(text, parse_topology("v5e:2x2"), MODEL, 1024, 256)
    assert times.unknown == ("something_new",)
    assert times.attention == 0


# Two slices of four chips: what each kind of exchange between all of them, of 4 KiB, takes.
BYTES, ICI, DCN = 4096, 180e9, 3.125e9
ACROSS = {
    "all-reduce(%a), channel_id=1, to_apply=%add": 2 * BYTES / 4 / 2 / DCN + 2 * BYTES / ICI,
    "reduce-scatter(%a), channel_id=1, to_apply=%add": 8 * BYTES / 4 / 2 / DCN
    + 8 * BYTES / ICI,  # its result is a part
    "all-gather(%a), channel_id=1": BYTES / 4 / 2 / DCN + BYTES / ICI,
    "all-to-all(%a), channel_id=1": BYTES / 2 / DCN,
}


def one_exchange(line: str) -> str:
    return f"ENTRY %main (a: f32[8,128]) -> f32[8,128] {{\n  ROOT %out = {line}\n}}\n"


@pytest.mark.parametrize("what", ACROSS)
def test_what_crosses_slices_goes_over_the_network(what):
    text = one_exchange(f"f32[8,128]{{1,0}} {what}, replica_groups=[1,8]<=[8]")
    apart = step_time(text, parse_topology("v5e:2x2", 2), MODEL, 1024, 256)
    inside = step_time(text, parse_topology("v5e:2x4"), MODEL, 1024, 256)
    assert apart.collectives[0].crosses
    assert apart.exposed == pytest.approx(ACROSS[what])
    assert not inside.collectives[0].crosses


@pytest.mark.parametrize(("pairs", "crosses"), [("{{0,4},{4,0}}", True), ("{{0,1},{1,0}}", False)])
def test_a_permutation_sends_all_that_it_has(pairs, crosses):
    text = one_exchange(f"f32[8,128]{{1,0}} collective-permute(%a), channel_id=1, source_target_pairs={pairs}")
    times = step_time(text, parse_topology("v5e:2x2", 2), MODEL, 1024, 256)
    assert times.collectives[0].crosses == crosses
    assert times.exposed == pytest.approx(BYTES / (DCN if crosses else ICI))


def test_pairs_of_slices_exchange_halves():
    """Four slices of which two and two join: one half leaves, not three quarters."""
    line = "f32[8,128]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,4},{8,12}}, to_apply=%add"
    times = step_time(one_exchange(line), parse_topology("v5e:2x2", 4), MODEL, 1024, 256)
    assert times.exposed == pytest.approx(2 * BYTES / 2 / DCN)


@pytest.mark.parametrize(
    "line",
    [
        "(f32[2,128]{1,0}, f32[8,128]{1,0}) all-gather-start(%a), channel_id=1, replica_groups=[1,4]<=[4]",
        "f32[8,128]{1,0} all-reduce-start(%a), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add",
        "(f32[8,128]{1,0}, f32[8,128]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=1, "
        "source_target_pairs={{0,1},{1,0}}",
    ],
)
def test_a_start_is_charged_what_its_end_results_in(line):
    found = step_time(one_exchange(line), parse_topology("v5e:2x2"), MODEL, 1024, 256).hidden_collectives[0]
    assert found.shown == "8x128"
    assert found.bytes == BYTES * (2 if found.opcode == "all-reduce" else 1)


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [("ALL_REDUCE", 2 * 3 / 4), ("REDUCE_SCATTER", 3 / 4), ("ALL_TO_ALL", 3 / 4), ("ALL_GATHER", 3), ("", 1)],
)
def test_messages_between_slices_are_hidden_and_told(kind, leaves):
    kind = f', frontend_attributes={{_xla_megascale_transfer_type="{kind}"}}' if kind else ""
    sent = f"  %sent = (bf16[4,256]{{1,0}}, u32[], token[]) send(%x), channel_id=20, is_host_transfer=true{kind}\n"
    across = PROGRAM.replace("  %kernel =", sent + "  %kernel =")  # in two loops, which turn six times
    alone = step_time(PROGRAM, parse_topology("v5e:2x2", 4), MODEL, 1024, 256)
    times = step_time(across, parse_topology("v5e:2x2", 4), MODEL, 1024, 256)
    assert math.isclose(times.between_slices, 6 * 2048 * leaves / DCN)
    waits = times.exposed - alone.exposed  # what computing is too short to hide
    computing = times.compute + sum(times.kernels.values()) + times.attention
    assert math.isclose(waits, max(0.0, times.between_slices - computing), abs_tol=1e-12)
    assert math.isclose(times.hidden + waits, alone.hidden + times.between_slices)
    assert math.isclose(times.total, alone.total + waits)


def test_the_rotation_is_charged_what_it_moves_in_hbm():
    text = PROGRAM.replace("attention_forward", "rope_to_heads").replace(
        "bf16[2,128]{1,0} custom", "bf16[4,128]{1,0} custom"
    )
    near = text.replace("%x = f32[8,128]{1,0:T(8,128)}", "%x = f32[8,128]{1,0:T(8,128)S(1)}")
    chip = parse_topology("v5e:2x2")
    times = [step_time(own, chip, MODEL, 1024, 256).kernels["rope_to_heads"] for own in (text, near)]
    assert times == pytest.approx([6 * (8 * 128 * 4 + 4 * 128 * 2) / 819e9, 6 * 4 * 128 * 2 / 819e9])


def test_what_lies_in_the_host_comes_and_goes():
    times = step_time(PROGRAM, parse_topology("v5e:2x2"), MODEL, 1024, 256, host_bytes=10**9)
    without = step_time(PROGRAM, parse_topology("v5e:2x2"), MODEL, 1024, 256)
    assert times.offload == 2e9 / 16e9
    assert times.total == pytest.approx(without.total + times.offload)
    assert times.outside_attention == pytest.approx(without.outside_attention + times.offload)


@pytest.mark.parametrize("name", ["known", "sum"])
def test_shapes_are_read(name):
    instruction = next(r.instruction for r in hlo.executed(hlo.parse(PROGRAM)) if r.instruction.name == name)
    assert instruction.sent_bytes == int(re.search(rf"%{name} = f32\[(\d+),128", PROGRAM)[1]) * 128 * 4
