"""Collectives read from compiled programs, the search of the largest batch, and what lies on one device."""

import types

import jax
import jax.numpy as jnp
import pytest

from ssmd_jax.data.pipeline import DataConfig
from ssmd_jax.evaluation.compile_check import check, figures, lowering
from ssmd_jax.evaluation.compile_check.chips import chip_of
from ssmd_jax.evaluation.compile_check.collectives import collectives
from ssmd_jax.evaluation.compile_check.traffic import loop_factor
from ssmd_jax.training import sharding
from ssmd_jax.training.programs import make_programs
from tests.training import tiny

# A TPU's loop that counts to 8 by twos, its collective inside a fusion, and one that goes on for as long as it likes.
TPU_TEXT = """
HloModule jit_f, is_scheduled=true

%fused (p.0: bf16[4,8]) -> bf16[16,8] {
  %p.0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p.0), replica_groups=mesh['a'=4,'b'=2] {'a'}
}

%condition (p.1: (bf16[4,8], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %p.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %turn = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%turn, %bound), direction=LT
}

%body (p.2: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %p.2 = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p.2), index=0
  %turn.2 = u32[]{:T(128)} get-tuple-element(%p.2), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%turn.2, %two)
  %fusion.1 = bf16[16,8]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%fused
  %start = (bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x)
  %done = bf16[4,8]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  ROOT %tuple.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) tuple(%done, %next)
}

%open (p.3: (f32[6], u32[])) -> pred[] {
  %p.3 = (f32[6]{0:T(128)}, u32[]{:T(128)}) parameter(0)
  ROOT %less.2 = pred[]{:T(512)} custom-call(%p.3)
}

%body.2 (p.4: (f32[6], u32[])) -> (f32[6], u32[]) {
  %p.4 = (f32[6]{0:T(128)}, /*index=1*/u32[]{:T(128)}) parameter(0)
  %y = f32[6]{0:T(128)} get-tuple-element(%p.4), index=0
  %sum.1 = f32[6]{0:T(128)} all-reduce(%y), replica_groups={{0,1,2},{3,4,5}}, to_apply=%add
  ROOT %tuple.2 = (f32[6]{0:T(128)}, u32[]{:T(128)}) tuple(%sum.1, %p.4)
}

ENTRY %main (a: (bf16[4,8], u32[]), b: (f32[6], u32[])) -> u32[] {
  %a = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %b = (f32[6]{0:T(128)}, u32[]{:T(128)}) parameter(1)
  %while.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) while(%a), condition=%condition, body=%body
  %while.2 = (f32[6]{0:T(128)}, u32[]{:T(128)}) while(%b), condition=%open, body=%body.2
  ROOT %out = u32[]{:T(128)} get-tuple-element(%while.1), index=1
}
"""


def mesh_of(**sizes):
    return sharding.make_mesh(tiny.config(mesh__data=-1, **sizes).mesh)


def test_collectives_of_a_tpu_program():
    found, unknown_loops = collectives(TPU_TEXT)
    reduce, gather, permute = found
    assert unknown_loops == 1
    # 24 bytes in groups of three: two thirds of them twice.
    assert tuple(reduce) == ("all-reduce", 1, 24, 32)
    assert tuple(gather) == ("all-gather", 4, 4 * 256, 4 * 192)
    assert tuple(permute) == ("collective-permute", 4, 4 * 64, 4 * 64)


def test_collectives_of_this_compiler():
    """Five turns of a scan with a sum over 8 devices in it, and one behind it."""
    mesh = mesh_of()

    def local(x_N):
        add = lambda total_N, _: (total_N + jax.lax.psum(x_N * total_N, "data"), None)
        return jax.lax.psum(jax.lax.scan(add, x_N, None, length=5)[0][:3], "data")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P(), check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((8 * 16,), jnp.float32)).compile().as_text()
    ((kind, count, num_bytes, wire_bytes),), unknown_loops = collectives(text)
    assert (kind, count, num_bytes, unknown_loops) == ("all-reduce", 6, 5 * 64 + 12, 0)
    assert wire_bytes == 5 * int(2 * 64 * 7 / 8) + int(2 * 12 * 7 / 8)


# A turn reads 40 of the stacked bytes, 40 of the carry and the index, writes 40 of the carry and 40 of the stacked
# result, and the counter's add moves 12; behind the five turns a sum reads 240 and writes 4.
STACKED_TEXT = """
%step (s.0: f32[5,10], s.1: s32[], s.2: f32[10], s.3: f32[5,10]) -> (f32[10], f32[5,10]) {
  %s.0 = f32[5,10]{1,0} parameter(0)
  %view = f32[50]{0} bitcast(%s.0)
  %s.1 = s32[] parameter(1)
  %row = f32[10]{0} dynamic-slice(%view, %s.1), dynamic_slice_sizes={10}
  %s.2 = f32[10]{0} parameter(2)
  %sum = f32[10]{0} add(%row, %s.2)
  %s.3 = f32[5,10]{1,0} parameter(3)
  %update = f32[1,10]{1,0} bitcast(%sum)
  %stacked = f32[5,10]{1,0} dynamic-update-slice(%s.3, %update, %s.1, %s.1)
  ROOT %both = (f32[10]{0}, f32[5,10]{1,0}) tuple(%sum, %stacked)
}

%condition (c: (s32[], f32[5,10], f32[10], f32[5,10])) -> pred[] {
  %c = (s32[], f32[5,10]{1,0}, f32[10]{0}, f32[5,10]{1,0}) parameter(0)
  %turn = s32[] get-tuple-element(%c), index=0
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%turn, %five), direction=LT
}

%body (b: (s32[], f32[5,10], f32[10], f32[5,10])) -> (s32[], f32[5,10], f32[10], f32[5,10]) {
  %b = (s32[], f32[5,10]{1,0}, f32[10]{0}, f32[5,10]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%b), index=0
  %xs = f32[5,10]{1,0} get-tuple-element(%b), index=1
  %carry = f32[10]{0} get-tuple-element(%b), index=2
  %ys = f32[5,10]{1,0} get-tuple-element(%b), index=3
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  %fusion = (f32[10]{0}, f32[5,10]{1,0}) fusion(%xs, %n, %carry, %ys), kind=kLoop, calls=%step
  %new = f32[10]{0} get-tuple-element(%fusion), index=0
  %out = f32[5,10]{1,0} get-tuple-element(%fusion), index=1
  ROOT %state = (s32[], f32[5,10]{1,0}, f32[10]{0}, f32[5,10]{1,0}) tuple(%next, %xs, %new, %out)
}

ENTRY %main (a: (s32[], f32[5,10], f32[10], f32[5,10]), z: f32[60]) -> f32[] {
  %a = (s32[], f32[5,10]{1,0}, f32[10]{0}, f32[5,10]{1,0}) parameter(0)
  %z = f32[60]{0} parameter(1)
  %while = (s32[], f32[5,10]{1,0}, f32[10]{0}, f32[5,10]{1,0}) while(%a), condition=%condition, body=%body
  ROOT %total = f32[] custom-call(%z)
}
"""


def test_bytes_of_loops():
    """Of stacked buffers a turn moves its slice alone."""
    turn = 4 + 12 + 160
    assert loop_factor(STACKED_TEXT) == pytest.approx((5 * turn + 244) / (turn + 244))
    assert loop_factor(STACKED_TEXT.replace("direction=LT", "direction=NE")) == 1


@pytest.mark.parametrize(("limit", "start"), [(1, 1), (7, 1), (7, 7), (8, 100), (31, 4), (1000, 3)])
def test_largest_batch(limit, start):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= 8 * limit

    found = check.largest(fits, start, unit=8)
    assert found % 8 == 0 and len(asked) == len(set(asked))
    assert found == 8 * limit if limit < 32 else 8 * limit * 15 / 16 < found <= 8 * limit


def test_nothing_fits():
    assert check.largest(lambda size: False, 16, unit=8) is None


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"loss__teacher_passes": 2}], ids=str)
def test_state_of_one_device(fields):
    """Under fsdp=8 each device has an eighth; what the train step says of its arguments agrees, a teacher's too."""
    config = tiny.config(mesh__data=1, mesh__fsdp=8, **fields)
    mesh = sharding.make_mesh(config.mesh)
    split = figures.bytes_per_device(make_programs(config, mesh, 27).abstract.params)
    whole = figures.bytes_per_device(make_programs(tiny.config(mesh__data=8), mesh_of(), 27).abstract.params)
    assert whole / 8 <= split < whole / 6
    built, lowered = lowering.lower_train(config, mesh, 27)
    result = figures.compile_program(lowered, batch_size=8, flops=1.0, chip=None, options={})
    tokens = 8 * 16 * 4 // 8
    key = 8
    assert result.memory.arguments == figures.bytes_per_device(built.abstract) + tokens + key
    assert {one.kind for one in result.collectives} >= {"all-reduce", "all-gather"}


def test_tokens_without_data(tmp_path):
    assert check.tokens_of(DataConfig()) == 27
    assert check.tokens_of(DataConfig(tokenizer="bytes")) == 256
    assert check.tokens_of(DataConfig(tokenizer="sentencepiece", vocab_size=99)) == 99
    with pytest.raises(ValueError, match="num_tokens"):
        check.tokens_of(DataConfig(tokenizer="huggingface", tokenizer_path=str(tmp_path / "none.json")))


KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": None,
    "NVIDIA H200": "H200",
    "cpu": None,
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_chips(kind, name):
    chip = chip_of(types.SimpleNamespace(device_kind=kind))
    assert chip is None if name is None else chip.name == name and chip.matrix > 1e14


@pytest.mark.parametrize(
    ("arguments", "fields", "named"),
    [
        ({"topology_name": "v5e"}, {}, "like v5e:4x4"),
        ({"programs": ("train", "serve")}, {}, "got serve"),
        ({"programs": ()}, {}, "got none"),
        ({"batch_size": 3}, {"mesh__data": 2}, "training.batch_size 3"),
        ({"batch_size": 3}, {"training__accumulation": 2}, "training.batch_size 3"),
        ({"largest_batch": True}, {}, "memory of cpu"),
        ({}, {"mesh__fsdp": 9}, "mesh"),
        ({"sample_batch": 3, "programs": ("sampler",)}, {"mesh__data": 2}, "batch_size 3"),
    ],
)
def test_bad_input(arguments, fields, named):
    with pytest.raises(ValueError, match=named):
        check.check(tiny.config(**fields), **{"topology_name": "local"} | arguments)
