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
    assert times.uncharged == ()


def test_symmetric_products_are_charged_as_plain_ones():
    """By the shape of what is multiplied, not of the result."""
    kernel = "%kernel = bf16[2,128]{1,0} custom-call(%x), "
    product = """%wide = bf16[3,128,640]{2,1,0} copy(%x)
  %kernel = bf16[3,128,128]{2,1,0} custom-call(%blocks, %wide, %wide), """
    text = PROGRAM.replace(kernel, product).replace("attention_forward", "closed_call/newton_schulz_product")
    chip = parse_topology("v5e:2x2").chip
    times = step_time(text, parse_topology("v5e:2x2"), MODEL, 1024, 256)
    assert times.kernels == {"newton_schulz_product": pytest.approx(6 * 2 * 3 * 128 * 128 * 640 / 0.8 / chip.flops)}
    assert times.uncharged == ()


def test_what_is_not_known_is_told():
    text = PROGRAM.replace("attention_forward", "something_new")
    times = step_time(text, parse_topology("v5e:2x2"), MODEL, 1024, 256)
    assert times.uncharged == ("something_new",)
    assert times.attention == 0


def test_what_crosses_slices_goes_over_the_network():
    across = PROGRAM.replace("replica_groups={{0,1,2,3}}", "replica_groups={{0,4},{1,5}}")
    inside = step_time(across, parse_topology("v5e:2x4"), MODEL, 1024, 256)
    apart = step_time(across, parse_topology("v5e:2x2", 2), MODEL, 1024, 256)
    assert not any(one.crosses for one in inside.collectives)
    crossing = [one for one in apart.collectives if one.crosses]
    assert [one.times for one in crossing] == [6]
    assert crossing[0].seconds > 20 * 6 * 2 * 1024 / 180e9


def test_messages_between_slices_are_hidden_and_told():
    sent = "  %sent = (bf16[4,256]{1,0}, u32[]{:S(2)}, token[]) send(%x), channel_id=20, is_host_transfer=true\n"
    across = PROGRAM.replace("  %kernel =", sent + "  %kernel =")
    alone = step_time(PROGRAM, parse_topology("v5e:2x2", 2), MODEL, 1024, 256)
    times = step_time(across, parse_topology("v5e:2x2", 2), MODEL, 1024, 256)
    assert math.isclose(times.between_slices, 6 * 2048 / 3.125e9)
    assert math.isclose(times.hidden, alone.hidden + times.between_slices)
    assert times.exposed == alone.exposed


@pytest.mark.parametrize("name", ["known", "sum"])
def test_shapes_are_read(name):
    instruction = next(r.instruction for r in hlo.executed(hlo.parse(PROGRAM)) if r.instruction.name == name)
    assert instruction.sent_bytes == int(re.search(rf"%{name} = f32\[(\d+),128", PROGRAM)[1]) * 128 * 4
