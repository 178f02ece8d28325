"""The speed of masked language models: counts of passes and operations, shares of the roofline, and the parts."""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.evaluation.benchmark import bench, dual, dual_settings, masked_lm, program
from ssmd_jax.evaluation.benchmark.ceilings import Ceilings
from ssmd_jax.evaluation.benchmark.dual_settings import PRESETS, make_settings
from ssmd_jax.model.bidirectional import BidirectionalTransformer
from ssmd_jax.model.llada import LLADA_8B
from ssmd_jax.sampling.dual.proposal import Proposal

TINY = PRESETS["tiny"]


def test_all_parts_of_a_run():
    """One process, the whole preset: everything is measured, with shares that follow from what else is there."""
    lines = []
    found = dual.benchmark(say=lines.append)
    names = [f"{part} B=2" for part in (*dual.PASSES, *dual.DECODERS)]
    rows = {row["part"]: row for row in found["rows"]}
    assert list(rows) == names and all(row["error"] is None for row in rows.values())
    assert any("programs compiled" in line for line in lines)
    ceilings, config = found["ceilings"], TINY.model
    reading = found["weight_bytes"] / ceilings["copy_bytes"]
    for name, row in rows.items():
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert row["share_of_ceiling"] == pytest.approx(row["flops"] / row["seconds"] / ceilings["matmul_flops"])
        passes = round(row["seconds"] / row["seconds_per_pass"])
        assert row["share_of_weight_reading"] == pytest.approx(passes * reading / row["seconds"])
        # Both bounds hold at once, so the roofline is no lower than either.
        assert row["share_of_roofline"] >= max(row["share_of_weight_reading"], row["share_of_ceiling"]) * (1 - 1e-9)
        if name.split(" B=")[0] in dual.DECODERS:
            assert row["tokens_per_second"] == pytest.approx(2 * TINY.gen_length / row["seconds"])
            assert row["drafter_passes"] == TINY.gen_length // TINY.tokens_a_step == 8
    # Two blocks of four passes each: a full one at each start; dKV has two; the verifier sees each block once.
    full = {name.split(" B=")[0]: row.get("full_passes") for name, row in rows.items()}
    assert [full[name] for name in dual.DECODERS] == [8, 2, 2, 4, 4]
    assert rows["dualdiffusion B=2"]["verifier_passes"] == 2
    fed = {name: rows[f"{name} B=2"]["positions_of_a_cached_pass"] for name in dual.DECODERS}
    # The prefix cache feeds 16 positions in the first block's passes and 8 in the second's; dKV what is masked and
    # what was committed just now: 16 - 2n and 8 - 2n positions in passes n + 2.
    assert fed == {"plain": 0, "prefix": 12, "dual": 8, "dualdiffusion": 8, "dkv": (16 + 14 + 8 + 6) / 4 - 2}
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(masked_lm.abstract_model(config)))
    speed = lambda name: rows[f"{name} B=2"]["tokens_per_second"]
    assert found["ratios"]["dual B=2 over plain"] == pytest.approx(speed("dual") / speed("plain"))
    assert len(found["ratios"]) == 4


def test_passes_alone_are_those_of_the_decoders():
    """The block's tokens by a full pass, and again against the cache of zeros that the loop starts from."""
    model = masked_lm.random_model(TINY.model, 0)
    tokens_BxL = jnp.asarray(np.random.default_rng(1).integers(0, 61, (2, 32)), jnp.int32)
    start, size = jnp.int32(24), 8
    tokens_Bxb, score_Bxb = dual.full_pass(model, tokens_BxL, start, size=size)
    logits_BxLxV = BidirectionalTransformer(TINY.model).apply({"params": model.params}, tokens_BxL)
    expected = Proposal().propose(None, logits_BxLxV[:, 24:], model.mask_id)
    np.testing.assert_array_equal(tokens_Bxb, expected[0])
    np.testing.assert_allclose(score_Bxb, expected[1], rtol=1e-5)

    cache, slots_BxS = model.init_cache(2, 32), jnp.broadcast_to(jnp.arange(24, 32)[None], (2, 8))
    fed_BxS = tokens_BxL[:, 24:]
    for _ in range(3):
        h_BxSxC, cache = model.hidden(fed_BxS, slots_BxS, cache, None)
        fed_BxS, last_BxS = Proposal().propose(None, model.logits(h_BxSxC), model.mask_id)
    tokens_Bxb, score_Bxb = dual.dual_steps(model, tokens_BxL, start, size=size, count=3)
    np.testing.assert_array_equal(tokens_Bxb, fed_BxS)
    np.testing.assert_allclose(score_Bxb, last_BxS, rtol=1e-5)


def test_random_weights_have_the_deviations_of_a_fresh_network():
    config = dataclasses.replace(TINY.model, width=64, mlp_width=96, dtype="bfloat16")
    model = masked_lm.random_model(config, 0)
    fresh = nn.unbox(BidirectionalTransformer(config).init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))["params"])
    assert jax.tree.structure(model.params) == jax.tree.structure(fresh)
    for path, x in jax.tree.leaves_with_path(model.params):
        assert x.dtype == jnp.bfloat16
        other = functools.reduce(lambda tree, part: tree[part.key], path, fresh)
        # Kernels that write into the residual begin smaller by the root of twice the number of layers.
        scale = (2 * config.num_layers) ** 0.5 if path[-1].key in ("out", "down") else 1.0
        np.testing.assert_allclose(float(x.astype(jnp.float32).std()), scale * float(other.std()), rtol=0.15, atol=1e-6)
    again = masked_lm.random_model(config, 0)
    assert all(map(np.array_equal, jax.tree.leaves(model.params), jax.tree.leaves(again.params)))


def test_operations_of_a_pass():
    """The formula counts what the compiler counts but for norms, rotations, softmax and activations."""
    config = dataclasses.replace(TINY.model, width=64, num_heads=8, num_kv_heads=4, mlp_width=160)
    tokens = jax.ShapeDtypeStruct((3, 48), jnp.int32)

    def function(model, tokens_BxL):
        h_BxLxC, _ = model.hidden(tokens_BxL, None, None, None)
        return model.logits(h_BxLxC[:, :8])

    counted = program.count_flops(function, masked_lm.abstract_model(config), tokens)
    formula = masked_lm.pass_flops(config, 3, 48, 48, 8)
    assert 1.0 <= counted / formula < 1.1


def test_llada_8b_by_hand():
    """8.02 billion parameters; for one row a step of 32 positions must read 15 GB, and a full pass must compute."""
    model = masked_lm.abstract_model(LLADA_8B)
    assert sum(x.size for x in jax.tree.leaves(model)) == pytest.approx(8.02e9, rel=1e-3)
    assert masked_lm.weight_bytes(model) == pytest.approx(2 * (8.02e9 - 126_464 * 4096), rel=1e-3)
    ceilings = Ceilings(
        matmul_flops=7e14, matmul_size=1, matmul_dtype="", copy_bytes=3e12, copy_size=1, published_flops=None
    )
    seconds = lambda batch, fed: masked_lm.roofline_seconds(model, ceilings, batch, fed, 768, 32)
    assert seconds(1, 32) == pytest.approx(masked_lm.weight_bytes(model) / 3e12)
    assert seconds(1, 768) == pytest.approx(masked_lm.pass_flops(LLADA_8B, 1, 768, 768, 32) / 7e14)
    assert seconds(16, 32) > seconds(1, 32)
    # The kernels of the blocks, 6.98 billion, count twice for each position.
    assert masked_lm.pass_flops(LLADA_8B, 1, 768, 768, 0) == pytest.approx(2 * 6.98e9 * 768 * 1.028, rel=1e-2)


def test_a_part_that_fails_is_a_row(monkeypatch):
    """What a compiler raises in its thread is the part's reason, and the others go on."""

    def broken(*_, **__):
        raise NotImplementedError("no such kernel\nand a stack")

    monkeypatch.setattr(dual, "dual_steps", broken)
    found = dual.benchmark(parts="step,full", say=lambda text: None)
    full, step = found["rows"]
    assert full["error"] is None and step == {
        "suite": "dual",
        "part": "dual step B=2",
        "error": "NotImplementedError: no such kernel",
    }


def test_a_decoder_that_leaves_its_schedule_has_no_figure():
    result = types.SimpleNamespace(drafter_passes=7, verifier_passes=0, drafter_positions=np.array([1]))
    with pytest.raises(RuntimeError, match=r"7 draft passes.*8"):
        dual.kinds_of_passes(TINY, dual.decoders(TINY)["plain"], result)


def test_unknown_part():
    with pytest.raises(ValueError, match="no part is called 'prefill'"):
        dual.benchmark(parts="prefill", say=lambda text: None)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"tokens_a_step": 3}, "tokens_a_step 3"),
        ({"batches": ()}, "batches"),
        ({"batches": (0,)}, "batches"),
        ({"prompt_length": 60}, "more than the 64"),
        ({"runs": 0}, "runs"),
        ({"max_seconds": 0.0}, "max_seconds"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_bad_settings(overrides, named):
    with pytest.raises(ValueError, match=named):
        make_settings("tiny", **overrides)
    with pytest.raises(ValueError, match="preset"):
        make_settings("huge")


def test_the_preset_of_llada():
    settings = make_settings("llada8b", num_layers=2)
    assert (settings.length, settings.steps, settings.batches) == (768, 32, (1, 16))
    assert settings.model == dataclasses.replace(LLADA_8B, num_layers=2)
    assert dual_settings.PRESETS["llada8b"].model == LLADA_8B


def test_ceilings_that_cannot_be_measured(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench, "measure_ceilings", broken)
    assert bench.ceilings_of(jax.devices()[0], TINY, print) == (None, "RuntimeError: out of memory")
