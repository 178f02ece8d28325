"""The benchmark's harness: its clock, its guard against compiling, its formulas, and the naive model's law."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, FullWindow
from ssmd_jax.evaluation.benchmark import bench, flops, harness, program, rows, sampling, settings, timing
from ssmd_jax.evaluation.benchmark.ceilings import Ceilings
from ssmd_jax.evaluation.benchmark.models import random_model
from ssmd_jax.evaluation.benchmark.naive import NaiveModel
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.config import HybridConfig
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.sampling import speculative
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.training.state import abstract_params, count_params

NETWORK = HybridConfig(num_tokens=7, width=32, num_heads=4, n_noncausal=2, n_causal=1, dtype="float32")


class FakeClock:
    """Tells the given durations, one for each timed run."""

    def __init__(self, durations):
        self.times = itertools.accumulate(itertools.chain.from_iterable((0.0, x) for x in durations))

    def __call__(self):
        return next(self.times)


def test_median_of_runs_after_a_warm_up():
    timed = timing.measure(lambda: None, "nothing", runs=4, clock=FakeClock([9.0, 4.0, 1.0, 2.0, 8.0]))
    assert timed == timing.Timing(median=3.0, low=1.0, high=8.0, runs=4, calls=1, warm=True)


def test_short_calls_are_timed_together():
    calls = []
    timed = timing.measure(lambda: calls.append(1), "nothing", runs=2, clock=FakeClock([0.005, 0.012, 0.02]))
    assert timed.calls == 4 and len(calls) == 1 + 2 * 4
    np.testing.assert_allclose(timed[:3], (0.004, 0.003, 0.005))
    single = timing.measure(lambda: None, "nothing", runs=2, single=True, clock=FakeClock([0.005, 0.002, 0.004]))
    np.testing.assert_allclose(single[:5], (0.003, 0.002, 0.004, 2, 1))


def test_time_is_bounded():
    """A warm-up beyond the bound is the timing; otherwise no run starts that would pass it."""
    timed = timing.measure(lambda: None, "nothing", runs=5, max_seconds=10, clock=FakeClock([11.0]))
    assert timed.median == 11.0 and timed.runs == 1 and not timed.warm
    timed = timing.measure(lambda: None, "nothing", runs=5, max_seconds=10, clock=FakeClock([3.0, 3.0, 3.0, 3.0]))
    assert timed.runs == 2 and timed.warm
    with pytest.raises(ValueError, match="runs"):
        timing.measure(lambda: None, "nothing", runs=0)


def test_compiling_in_the_timed_region_raises():
    x = jnp.ones(3)
    with pytest.raises(timing.RecompilationError, match="my part compiled"):
        timing.measure(lambda: jax.jit(lambda x: x + 1)(x), "my part", runs=1)
    # Not the warm-up alone is watched: here a later call meets a new shape.
    shapes, double = iter([x, x, jnp.ones(4)]), jax.jit(lambda x: 2 * x)
    double(x)
    with pytest.raises(timing.RecompilationError):
        timing.measure(lambda: double(next(shapes)), "my part", runs=2, single=True)
    timing.measure(functools.partial(double, x), "my part", runs=2)
    # And nobody listens when the region has been left.
    jax.jit(lambda x: x - 1)(x)


@functools.cache
def models(causal_form="blocks"):
    perturbation = 8.0 if causal_form == "evidence" else 0.8  # enough for rejections
    fast = random_model(dataclasses.replace(NETWORK, causal_form=causal_form), seed=1, perturbation=perturbation)
    return fast, NaiveModel(fast.params, fast.config)


@pytest.mark.parametrize(
    ("config", "lengths"),
    [
        (SpeculativeConfig(ConstantWindow(4), 2), None),
        (SpeculativeConfig(CosineWindow(0.2), 1), None),
        (SpeculativeConfig(FullWindow(), 3, order="confidence", tie_first=True), np.array([10, 9, 10, 4, 10, 7])),
    ],
    ids=["constant", "one round", "full, lengths, reordered, tied"],
)
@pytest.mark.parametrize("causal_form", ["blocks", "evidence"])
def test_naive_model_gives_the_same_samples(config, lengths, causal_form):
    batch, length = 6, 10
    rng = np.random.default_rng(0)
    inside = np.arange(length)[None] < (np.full(batch, length) if lengths is None else lengths)[:, None]
    mask = (rng.random((batch, length)) < 0.3) & inside
    mask[0] = False
    prompt = rng.integers(0, NETWORK.num_tokens, (batch, length))
    fast, naive = (
        speculative.sample(
            model, jax.random.key(5), config, batch_size=batch, length=length, prompt=prompt, prompt_mask=mask,
            lengths=lengths,
        )
        for model in models(causal_form)
    )  # fmt: skip
    for field in dataclasses.fields(fast):
        left, right = (np.asarray(getattr(result, field.name)) for result in (fast, naive))
        np.testing.assert_array_equal(left, right, err_msg=field.name)
    assert fast.rejected.sum() > 0 and fast.accepted.sum() > 0


def test_programs_of_the_naive_model_are_its_own():
    """Equal tree structures would let JAX run one model's program for the other."""
    fast, naive = (jax.tree.structure(model) for model in models())
    assert fast != naive


@pytest.mark.parametrize(
    "n_causal, causal_mlp_width, causal_form",
    [(0, 0, "blocks"), (1, 0, "blocks"), (1, 2048, "blocks"), (2, 1024, "blocks"), (1, 0, "evidence")],
)
def test_formulas_against_the_compiler(n_causal, causal_mlp_width, causal_form):
    """Of shapes so wide that what the formulas leave out, norms and softmax, is little."""
    batch, length = 2, 64
    config = HybridConfig(
        num_tokens=1000,
        width=512,
        num_heads=8,
        n_noncausal=3,
        n_causal=n_causal,
        causal_mlp_width=causal_mlp_width,
        causal_form=causal_form,
        dtype="float32",
        unroll=3,
    )
    shaped = dataclasses.replace(settings.PRESETS["tiny"], model=config, batch_size=batch, length=length, delta_tau=0.3)
    params = abstract_params(HybridTransformer(config))
    args = jax.eval_shape(lambda: sampling.random_rows(shaped, batch))
    size = shaped.window_size

    def check(function, model, formula, *args):
        np.testing.assert_allclose(program.count_flops(function, model, *args), formula, rtol=0.04)

    draft = functools.partial(sampling.draft, settings=shaped)
    verify = functools.partial(sampling.verify, settings=shaped)
    fast, naive = HybridModel(params, config), NaiveModel(params, config)
    trunk, blocks = flops.trunk(config, batch, length), flops.blocks(config, batch, length)
    check(sampling.blocks_alone, fast, blocks, *args[:3])
    if causal_form == "evidence":  # of which a total would not show a square more or less
        assert trunk - blocks == batch * length * 2 * sum(
            params["causal"][name].size for name in ("context_up", "query", "gate")
        )
    check(draft, naive, blocks + flops.head(config, batch * length), *args)
    check(draft, fast, trunk + flops.head(config, batch * size), *args)
    for model, formula in (
        (fast, flops.verify_round(config, batch, length, size)),
        (naive, flops.naive_round(config, batch, length)),
    ):
        check(verify, model, formula, jax.eval_shape(draft, model, *args), *args)


def test_rows_share_the_ceilings():
    ceilings = Ceilings(200.0, 8, "float32", 10.0, 8, None)
    row = rows.Row("training", "step", timing.Timing(2.0, 1.0, 3.0, 3, 1, True), flops=100.0, figures={"nfe": 1.5})
    values = row.to_json(ceilings)
    assert values["flops_per_second"] == 50 and values["share_of_ceiling"] == 0.25 and values["nfe"] == 1.5
    assert values["share_of_published_peak"] is None
    failed = rows.Row("sampling", "trunk", error="RuntimeError: out of memory")
    text = rows.table([row, failed], ceilings)
    assert "2000.000" in text and "25.0" in text and "out of memory" in text


def test_a_part_that_fails_is_a_row():
    def fail(error):
        raise error

    said = []
    device = jax.devices()[0]
    on = bench.Bench(settings.PRESETS["tiny"], None, device, None, said.append, parts=("trunk",))
    (row,) = on.row("sampling", "trunk", lambda: fail(RuntimeError("out of memory\nby 3 bytes")))
    assert row.error == "RuntimeError: out of memory" and "failed" in said[0]
    assert on.row("sampling", "draft", lambda: fail(RuntimeError())) == []
    with pytest.raises(timing.RecompilationError):
        on.row("sampling", "trunk", lambda: fail(timing.RecompilationError("compiled")))


def test_presets_are_the_experiments():
    """Parameter counts of configs/books_char.py and configs/openwebtext.py."""
    count = lambda name: count_params(abstract_params(HybridTransformer(settings.PRESETS[name].model)))
    assert count("books") == 21_855_744 and count("openwebtext") == 164_583_168
    assert settings.PRESETS["openwebtext"].window_size == 33


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"preset": "huge"}, "preset"),
        ({"suites": "sampling,rest"}, "suite"),
        ({"batch_size": 0}, "batch_size"),
        ({"delta_tau": 0.0}, "delta_tau"),
        ({"width": 65}, "width"),
        ({"dtype": "float32", "attention": "cudnn"}, "cudnn"),
        ({"runs": 0}, "runs"),
        ({"perturbation": -1.0}, "perturbation"),
    ],
)
def test_bad_settings_are_refused_first(overrides, named):
    with pytest.raises(ValueError, match=named):
        harness.benchmark(**overrides, say=lambda text: pytest.fail("something ran"))
