"""Every policy against its twin, token for token; against other mates; within its budget; alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.sampling import keys, policy
from ssmd_jax.sampling.policies.dilated import Dilated, Spaced
from ssmd_jax.sampling.policy import View
from tests.sampling.policies import cases, twins
from tests.sampling.policies.cases import BATCH, LENGTH, POLICIES

KEY = jax.random.key(3)
# Both models have the same costs here; a budget that never bites compiles the same program as one that does.
AMPLE, TIGHT = 1000.0, 2.8
PER_ROW = ("tokens", "order", "nfe", "trunk_passes", "verify_rounds", "unverified", "revealed_in", "rejected_token")


def draw(model, chosen, budget, key=KEY, batch_size=BATCH, **rows):
    critic, _ = cases.critic_of(chosen, model)
    chosen = dataclasses.replace(chosen, budget_nfe=budget)
    return policy.sample(model, key, chosen, batch_size=batch_size, length=LENGTH, critic=critic, **rows)


def assert_is_twin(result, model, network, chosen, budget, rows, which):
    critic, one = cases.critic_of(chosen, model)
    costs = (model.trunk_cost, 0.0 if critic is None else critic.cost)
    for b in which:
        length = rows["lengths"][b]
        twin = twins.run(
            dataclasses.replace(chosen, budget_nfe=budget),
            network,
            jax.random.fold_in(KEY, b),
            rows["prompt"][b, :length],
            rows["prompt_mask"][b, :length],
            model.num_tokens,
            costs,
            one,
        )
        for name, value in twin.items():
            got = np.asarray(getattr(result, name))[b]
            got = got[:length] if got.ndim else got
            np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=f"row {b}: {name}")


@pytest.mark.parametrize("name", POLICIES)
def test_tabular(name):
    """The twin token for token, with and without a budget that bites; other mates change nothing."""
    model, chosen, rows = cases.tabular(), POLICIES[name], cases.ragged()
    network = cases.of_tabular(model)
    result = draw(model, chosen, AMPLE, **rows)
    assert_is_twin(result, model, network, chosen, AMPLE, rows, range(BATCH))
    given = rows["prompt_mask"]
    np.testing.assert_array_equal(np.asarray(result.tokens)[given], rows["prompt"][given])
    inside = np.arange(LENGTH)[None] < rows["lengths"][:, None]
    np.testing.assert_array_equal(np.asarray(result.tokens) == model.num_tokens, ~inside)
    assert (np.asarray(result.trunk_passes)[1], np.asarray(result.nfe)[1]) == (0, 0)

    tight = draw(model, chosen, TIGHT, **rows)
    assert_is_twin(tight, model, network, chosen, TIGHT, rows, (0, 3))
    assert (np.asarray(tight.nfe) <= TIGHT + 1e-4).all()
    np.testing.assert_array_equal(np.asarray(tight.tokens) == model.num_tokens, ~inside)

    # Every other row gets another key, prompt and length; the program is the same.
    others = {field: value[::-1].copy() for field, value in cases.ragged(seed=1).items()}
    kept = np.arange(BATCH) % 2 == 0
    mixed = {field: np.where(kept.reshape((-1,) + (1,) * (v.ndim - 1)), v, others[field]) for field, v in rows.items()}
    new_keys = keys.row_keys(jax.random.key(8), BATCH)
    row_keys = jnp.where(kept, keys.row_keys(KEY, BATCH), new_keys)
    again = draw(model, chosen, AMPLE, row_keys, **mixed)
    for field in PER_ROW:
        np.testing.assert_array_equal(np.asarray(getattr(result, field))[kept], np.asarray(getattr(again, field))[kept])


# One of each rule; its other settings are slow tests.
FIRST = {type(chosen): name for name, chosen in reversed(POLICIES.items())}.values()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow]) for name in POLICIES]
)
def test_network(name):
    """Rows with a prompt: where nothing is known a network finds all positions alike, and rounding breaks ties."""
    model, chosen, rows = cases.network(), POLICIES[name], cases.ragged()
    result = draw(model, chosen, AMPLE, **rows)
    assert_is_twin(result, model, cases.of_network(model), chosen, AMPLE, rows, (2, 3))


@pytest.mark.slow
def test_devices_share_out_rows():
    """A loop a device, with its own number of passes, draws what one loop does."""
    model, chosen, rows = cases.tabular(), POLICIES["g-star"], cases.ragged()
    alone = draw(model, chosen, AMPLE, **rows)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    shared = draw(model, chosen, AMPLE, mesh=mesh, **rows)
    for field in PER_ROW:
        np.testing.assert_array_equal(np.asarray(getattr(alone, field)), np.asarray(getattr(shared, field)))
    assert shared.rows_computed.shape == (2,) and (np.asarray(shared.rows_computed) % 3 == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_row_alone(name):
    """Row `b` of a batch is that row drawn alone, on a canvas of its own length too."""
    model, chosen, rows = cases.network(), POLICIES[name], cases.ragged()
    result = draw(model, chosen, AMPLE, **rows)
    row_keys = keys.row_keys(KEY, BATCH)
    for b in (2, 3):
        alone = draw(model, chosen, AMPLE, row_keys[b : b + 1], 1, **{k: v[b : b + 1] for k, v in rows.items()})
        for field in PER_ROW:
            np.testing.assert_array_equal(np.asarray(getattr(result, field))[b], np.asarray(getattr(alone, field))[0])
    short = {k: v[2:3, :4] if v.ndim == 2 else v[2:3] for k, v in rows.items()}
    critic, _ = cases.critic_of(chosen, model)
    cut = policy.sample(model, row_keys[2:3], chosen, batch_size=1, length=4, critic=critic, **short)
    np.testing.assert_array_equal(cut.tokens[0], result.tokens[2, :4])
    np.testing.assert_array_equal(cut.trunk_passes[0], result.trunk_passes[2])


def test_dilated_ends_where_a_filter_drops_what_its_last_level_reveals():
    """Nothing is sure of anything, and neighbours wait for each other: what the last level could not reveal is still
    taken whatever its confidence."""
    chosen, masked = Spaced(inner=Dilated(block=4, threshold=0.9), block=4), jnp.ones(4, bool)
    step, state = jax.jit(chosen.step), chosen.init(masked, 5)
    for moves in range(8):
        view = View(KEY, jnp.int32(moves), jnp.zeros((4, 5)), jnp.full(4, 5), masked, jnp.zeros(4, bool), jnp.int32(4))
        move = step(view, state)
        masked, state = masked & ~move.reveal_D, move.state
    assert not masked.any()
