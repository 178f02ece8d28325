"""Which proposals are committed: against plain Python, ties and empty rows included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.sampling.dual import commit
from tests.sampling.dual import twins

KEY = jax.random.key(0)
CASES = {
    "fixed": (commit.Fixed(), twins.fixed),
    "threshold": (commit.Threshold(0.6), twins.threshold(0.6)),
    "factor": (commit.Factor(1.0), twins.factor(1.0)),
    "factor 3": (commit.Factor(3.0), twins.factor(3.0)),
    "factor paper": (commit.Factor(1.5, paper=True), twins.factor(1.5, paper=True)),
    "timesteps": (commit.Timesteps(), twins.timesteps),
}


@pytest.mark.parametrize("name", CASES)
def test_twin(name):
    rule, twin = CASES[name]
    rng = np.random.default_rng(1)
    choose = jax.jit(lambda *args: rule.choose(*args, 3, KEY))
    for _ in range(60):
        # Scores from a coarse grid tie often.
        score = (rng.integers(0, 9, size=8) / 8).astype(np.float32)
        candidate = rng.random(8) < rng.random()
        step = int(rng.integers(0, 4))
        found = set(np.nonzero(np.asarray(choose(score, candidate, step)))[0])
        scores = {p: float(score[p]) for p in np.nonzero(candidate)[0]}
        assert found == (set(twin(scores, step, 8, 3)) if scores else set())


def test_origin_commits_each_with_its_chance():
    rule, many = commit.Origin(), 4000
    choose = jax.jit(jax.vmap(lambda key: rule.choose(jnp.zeros(5), jnp.arange(5) < 4, 1, 4, key)))
    found = np.asarray(choose(jax.random.split(KEY, many)))
    times = np.linspace(1, 1e-3, 5)
    share = 1 - times[2] / times[1]
    assert not found[:, 4].any()
    np.testing.assert_allclose(found[:, :4].mean(axis=0), share, atol=4 * np.sqrt(share * (1 - share) / many))
    assert rule.choose(jnp.zeros(5), jnp.arange(5) < 4, 3, 4, KEY).sum() == 4


def test_schedule_adds_up():
    for steps in range(1, 9):
        left = jnp.ones(8, bool)
        for step in range(steps):
            left &= ~commit.Fixed().choose(jnp.arange(8.0), left, step, steps, KEY)
        assert not left.any()


@pytest.mark.parametrize(
    ("rule", "field", "value"),
    [
        (commit.Threshold, "tau", float("nan")),
        (commit.Factor, "factor", -1.0),
        (commit.Timesteps, "eps", 1.5),
        (commit.Origin, "eps", float("nan")),
    ],
)
def test_numbers_out_of_range(rule, field, value):
    with pytest.raises(ValueError, match=f"{rule.__name__}: {field} must be a finite number"):
        rule(**{field: value})
