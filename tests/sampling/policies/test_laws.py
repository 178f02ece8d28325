"""Exact laws of the policies on tabular models: enumeration, limits, and the range of the noise."""

import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow
from ssmd_jax.sampling import policy
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.policies import (
    confidence,
    dilated,
    entropy_bounded,
    grid,
    klass,
    path_planning,
    remdm,
    star,
)
from tests.enumeration import Law, shape
from tests.sampling.test_laws import chi_square
from tests.tabular import BIAS, tabular_model

NUM_SAMPLES = 20_000
LENGTH = 4
PLAIN = SpeculativeConfig(ConstantWindow(1), 1)


def draw(model, chosen, num_samples=NUM_SAMPLES, length=LENGTH, seed=1, **more):
    return policy.sample(model, jax.random.key(seed), chosen, batch_size=num_samples, length=length, **more)


def counts_of(result):
    return collections.Counter(map(tuple, np.asarray(result.tokens).tolist()))


def any_order_law(model, length=LENGTH):
    """One token at a time in uniformly random order, enumerated."""
    law = collections.defaultdict(float)
    for (tokens, *_), prob in Law(model, PLAIN, length, plain=True).joint().items():
        law[tokens] += prob
    return law


ONE_AT_RANDOM = {
    "first hitting": grid.FirstHitting(),
    "top k": confidence.TopK(steps=LENGTH, score="random"),
    "eb": entropy_bounded.EntropyBounded(gamma=0.0, score="random"),
    "p2": path_planning.PathPlanning(steps=LENGTH, eta=0.0, score="random"),
    "spaced": dilated.Spaced(inner=confidence.TopK(steps=2, score="random"), gap=99.0),
}


@pytest.mark.parametrize("name", ONE_AT_RANDOM)
def test_one_token_a_pass_in_random_order(name):
    model = tabular_model(LENGTH, num_tokens=3)
    result = draw(model, ONE_AT_RANDOM[name])
    assert chi_square(counts_of(result), any_order_law(model), NUM_SAMPLES) > 1e-3
    assert (np.asarray(result.trunk_passes) == LENGTH).all()
    orders = collections.Counter(map(tuple, np.asarray(result.order).tolist()))
    uniform = {order: 1 / math.factorial(LENGTH) for order in itertools.permutations(range(LENGTH))}
    assert chi_square(orders, uniform, NUM_SAMPLES) > 1e-3


ONE_TOKEN = {
    "eb": entropy_bounded.EntropyBounded(gamma=0.0),
    "klass, confidence": klass.Klass(threshold=1.1, divergence=1.0, steps=6),
    "klass, divergence": klass.Klass(threshold=0.0, divergence=0.0, steps=6),
    "threshold": confidence.Threshold(threshold=1.0),
    "factor": confidence.Factor(factor=0.0),
}


@pytest.mark.parametrize("name", ONE_TOKEN)
def test_limits_of_one_token_a_pass(name):
    """They are then top-k with one token a pass, token for token: by entropy for EB, by confidence for the others."""
    model = tabular_model(6, num_tokens=3, seed=4)
    score = "entropy" if name == "eb" else "confidence"
    found, wanted = (draw(model, chosen, 200, 6) for chosen in (ONE_TOKEN[name], confidence.TopK(steps=6, score=score)))
    assert (np.asarray(found.trunk_passes) == 6).all()
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.order, wanted.order)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["cap", "rescale"])
def test_no_remasking_is_ancestral(rule):
    """With sigma 0, draw for draw; P2 with eta 0 and random scores, and a star that never starts, remask nothing."""
    model = tabular_model(6, num_tokens=3, seed=4)
    found = draw(model, remdm.Remdm(steps=7, rule=rule, eta=0.0), 200, 6)
    wanted = draw(model, grid.Mdlm(steps=7), 200, 6)
    for field in ("tokens", "order", "trunk_passes", "revealed_in", "rejected_token"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field))
    for chosen in (
        path_planning.PathPlanning(steps=4, eta=0.0, score="random"),
        star.Star(steps=4, t_on=0.0, guided=False),
    ):
        assert (np.asarray(draw(model, chosen, 200, 6).rejected_token) == model.num_tokens).all()


def test_skipping_changes_no_token():
    """A step without a change costs no pass, and that is all: MDLM's cache, row by row."""
    model = tabular_model(6, num_tokens=3, seed=4)
    skipping, stepping = (draw(model, grid.Mdlm(steps=20, skip=skip), 200, 6) for skip in (True, False))
    np.testing.assert_array_equal(skipping.tokens, stepping.tokens)
    np.testing.assert_array_equal(skipping.rejected_token, stepping.rejected_token)
    assert np.asarray(skipping.trunk_passes).max() <= 6
    assert np.asarray(skipping.trunk_passes).mean() < 0.5 * np.asarray(stepping.trunk_passes).mean()


def grid_law(model, length, alphas, sigmas):
    """The law of a grid with re-masking, by walking through all that may be revealed and masked again."""
    frontier = {(None,) * length: 1.0}
    for (alpha_t, alpha_s), sigma in zip(itertools.pairwise(alphas), sigmas, strict=True):
        u = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        following = collections.defaultdict(float)
        for row, prob in frontier.items():
            options = []
            for x, distribution in enumerate(distributions(model, row)):
                if row[x] is None:
                    options.append([(None, 1 - u), *((v, u * p) for v, p in enumerate(distribution))])
                else:
                    options.append([(row[x], 1 - sigma), (None, sigma)])
            for outcome in itertools.product(*options):
                following[tuple(v for v, _ in outcome)] += prob * math.prod(p for _, p in outcome)
        frontier = following
    law = collections.defaultdict(float)
    for row, prob in frontier.items():
        likeliest = [int(np.argmax(distribution)) for distribution in distributions(model, row)]
        law[tuple(best if v is None else v for v, best in zip(row, likeliest, strict=True))] += prob
    return law


def distributions(model, row):
    """The draft at every position of a row with masks (None)."""
    known = [x for x, v in enumerate(row) if v is not None]
    positions = known + [x for x, v in enumerate(row) if v is None]
    tokens = [row[x] for x in known]
    found = {
        x: shape(model.numpy_draft_logits(tokens, positions, len(known), k), 1.0, 1.0) for k, x in enumerate(positions)
    }
    return [found[x] for x in range(len(row))]


@pytest.mark.parametrize("name", ["mdlm", "md4", "remdm", "remdm loop"])
def test_grids_follow_their_law(name):
    model, steps = tabular_model(3, seed=6), 4
    t = np.linspace(1, 1e-5, steps + 1)
    if name == "md4":
        chosen = grid.Md4(steps=steps)
        t = np.cos(np.pi / 2 * (1 - np.arange(steps, -1, -1) / steps))
        alphas, sigmas = (1 - 2e-4) * (1 - t) + 1e-4, [0.0] * steps
    elif name == "remdm loop":
        chosen = remdm.Remdm(steps=steps, rule="loop", eta=0.2, alpha_on=0.8)
        # Of the times 1, .75, .5, .25, 0 the third and fourth lie in the loop, and the step between them alone.
        alphas, sigmas = [0.0, 0.25 * 0.8 / 0.45, 0.8, 0.8, 1.0], [0.0, 0.0, 0.2, 0.0]
    else:
        eta = 0.0 if name == "mdlm" else 0.3
        chosen = grid.Mdlm(steps=steps) if name == "mdlm" else remdm.Remdm(steps=steps, eta=eta)
        alphas = 1 - t
        sigmas = [min(eta, t[n + 1] / alphas[n]) if n else eta for n in range(steps)]
    law = grid_law(model, 3, alphas, sigmas)
    assert chi_square(counts_of(draw(model, chosen, length=3)), law, NUM_SAMPLES) > 1e-3


def tables_as_published(chosen):
    """Reveal probability and sigma of each step of the loop in the authors' code: by the time that it starts at."""
    t, found = np.linspace(1, 1e-5, chosen.steps + 1), []
    for now, then in itertools.pairwise(t):
        if now > chosen.t_on:
            alphas, sigma = [(1 - x) * chosen.alpha_on / (1 - chosen.t_on) for x in (now, then)], 0.0
        elif now <= chosen.t_off:
            alphas, sigma = [1 - x * (1 - chosen.alpha_on) / chosen.t_off for x in (now, then)], 0.0
        else:
            alphas, sigma = [chosen.alpha_on] * 2, chosen.eta
        found.append([(alphas[1] - (1 - sigma) * alphas[0]) / (1 - alphas[0]), sigma])
    return np.array(found)


@pytest.mark.parametrize("steps", [128, 1000, 1024])
def test_loop_on_fine_grids_is_the_published_one_but_for_two_steps(steps):
    """So the law is theirs up to the step across `t_on`; no step starts or ends at either time exactly."""
    chosen = remdm.Remdm(steps=steps, rule="loop", eta=0.02)
    u, more, sigma = chosen.tables
    differs = np.abs(np.stack([u + sigma * more, sigma], axis=1) - tables_as_published(chosen)).max(axis=1) > 1e-6
    t = np.linspace(1, 1e-5, steps + 1)
    crosses = sum((t[:-1] > edge) & (t[1:] <= edge) for edge in (chosen.t_on, chosen.t_off))
    np.testing.assert_array_equal(differs, crosses == 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_loop_on_coarse_grids_ends_no_step_early(steps):
    """Probabilities are probabilities, and a step starts at the fraction that the one before ended at."""
    chosen = remdm.Remdm(steps=steps, rule="loop", eta=0.1)
    (alpha_t, alpha_s), (u, more, sigma) = chosen.alphas(), chosen.tables
    np.testing.assert_array_equal(alpha_t[1:], alpha_s[:-1])
    assert ((u + sigma * more >= 0) & (u + sigma * more <= 1)).all()
    # The masks that a step leaves and makes, in expectation.
    left = (1 - alpha_t) * (1 - u - sigma * more) + alpha_t * sigma
    np.testing.assert_allclose(left, 1 - alpha_s, atol=1e-6)


def test_noise_of_small_range_truncates_rare_tokens():
    """Float32 Gumbel noise of the ordinary kind ends at 15.95: a rare token of a short step is then never revealed.

    One categorical over tokens and mask at u = 1e-6, as MDLM's code has it: a token of probability .001 has the log
    weight -20.7, which such noise cannot lift above the mask's. Its share of what is revealed, by the lattice of 2^-23
    that the noise comes from; and by the two draws, whether and what, of the policies.
    """
    key = jax.random.key(34)
    extreme = {mode: float(jnp.max(jax.random.gumbel(key, (2**20,), mode=mode))) for mode in ("low", "high")}
    end = -math.log(-math.log1p(-(2.0**-23)))
    assert extreme["low"] <= end + 1e-3 < 16 < extreme["high"], extreme

    share, u = np.array([0.999, 0.001]), 1e-6
    mask = -np.log(-np.log((np.arange(2**18) + 0.5) / 2**18))
    # P(noise > x) on the lattice: nothing above its end.
    above = lambda x: np.floor(2**23 * -np.expm1(-np.exp(-x)) + 0.5) / 2**23
    common, rare = (above(mask - math.log(u * p)).mean() for p in share)
    assert common > 0.5 * u and rare < 0.01 * share[1] * common

    model = tabular_model(1, num_tokens=2)
    direction = jnp.tanh(BIAS * jnp.ones(3))
    logits = jnp.log(jnp.asarray(share, jnp.float32))
    model = model.replace(draft_DxFxV=(direction / jnp.sum(direction**2))[None, :, None] * logits[None, None])
    result = draw(model, grid.Mdlm(steps=30), length=1)
    assert chi_square(counts_of(result), {(0,): share[0], (1,): share[1]}, NUM_SAMPLES) > 1e-3
