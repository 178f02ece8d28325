"""What a pass feeds. The cached decoders as wholes are in test_decode.py; here are the window, and what is compiled."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssmd_jax.sampling.dual import feeding
from tests.sampling.dual import twins


@pytest.mark.parametrize("window", [0, 1, 4])
def test_greedy_window(window):
    rng = np.random.default_rng(window)
    length, most = 14, 3
    for _ in range(20):
        known = rng.random(length) < 0.5
        seen = known & (rng.random(length) < 0.8)
        committing = rng.permutation(np.nonzero(~known)[0])[:most]
        view = feeding.View(
            *(jnp.int32(x) for x in (1, 2, length)), 2, *(jnp.array(x)[None] for x in (known, seen)), None, most
        )
        chosen = np.zeros((1, length), bool)
        chosen[0, committing] = True
        found = feeding.Greedy(2, window).fed(view._replace(next_BxL=jnp.array(chosen)))
        expected = twins.greedy_window(
            set(committing), set(np.nonzero(known & ~seen)[0]), set(np.nonzero(~known)[0]), window, length
        )
        assert set(np.nonzero(np.asarray(found[0]))[0]) == expected


def test_sizes_hold_what_can_be_fed():
    for gen, block, steps in ((12, 4, 4), (32, 8, 2), (8, 8, 8), (30, 5, 5)):
        for one in (feeding.Prefix(3), feeding.Settled(4, 3), feeding.Greedy(2, 4)):
            sizes = one.sizes(gen, block, steps)
            assert sizes[-1] == gen and list(sizes) == sorted(set(sizes))
        assert feeding.Dual().sizes(gen, block, steps) == (block,)
        assert feeding.ShiftedSettled().sizes(gen, block, steps)[-1] == gen + 1
        assert feeding.FrozenPrompt().sizes(gen, block, steps) == (gen + 1,)
    # A pass of the schedule feeds what it commits, what the last one did, and the window of each.
    assert feeding.Greedy(2, 4).sizes(256, 32, 16)[0] == (2 + 4) * 2


def test_refresh_by_the_verifier_keeps_the_rhythm():
    """It counts as a full pass that was due: the next is `refresh` passes away."""
    for refresh in range(1, 9):
        one = feeding.Settled(refresh)
        step = one.step_after_refresh
        until_full = next(n for n in range(20) if one.is_full(jnp.int32(step + n)))
        assert until_full == refresh - 1


@pytest.mark.parametrize("kind", [feeding.Prefix, feeding.Settled, feeding.ShiftedSettled])
@pytest.mark.parametrize("buckets", [0, 2.5, True])
def test_sizes_to_compile_are_counted(kind, buckets):
    """Without any size every pass would be a full one, and the positions counted would not be those fed."""
    with pytest.raises(ValueError, match="buckets must be a whole number of at least 1"):
        kind(buckets=buckets)
