"""Many samples through a few slots: a finished row makes room for the next sample at once (continuous batching).

A batch waits for its slowest row; here a trunk pass computes only rows that need it until the queue is empty. Samples
are those of `speculative.sample` and `ancestral.sample`, since a row depends on its own key alone.
"""

import functools
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp

from ssmd_jax.sampling import ancestral, canvas, sharded, speculative
from ssmd_jax.sampling.canvas import Canvas, SampleResult
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.interface import prepared
from ssmd_jax.sampling.request import Rows, Rules, prepare

SAMPLERS = ("speculative", "plain")


def sample_many(
    model,
    key: jax.Array,
    config: SpeculativeConfig,
    *,
    num_samples: int,
    slots: int,
    length: int,
    prompt=None,
    prompt_mask=None,
    lengths=None,
    sampler: str = "speculative",
    mesh: jax.sharding.Mesh | None = None,
) -> SampleResult:
    """Draws `num_samples` samples, `slots` at a time; sample `n` is row `n` of a batch of `num_samples`.

    Args:
        model: satisfies `ssmd_jax.sampling.interface.SpeculativeModel`.
        key: one typed key, of which sample `n` uses `fold_in(key, n)`, or an array of `num_samples` keys.
        config: the sampler's settings.
        num_samples: how many samples; memory grows by a few integers for each of their tokens.
        slots: rows of a trunk pass, at most `num_samples` of them are used; memory for the network grows with them.
        length: tokens a sample, `D`.
        prompt: int `[num_samples, length]` in sequence order.
        prompt_mask: bool `[num_samples, length]`, True where `prompt` gives the token.
        lengths: int `[num_samples]`, shorter samples end there; None for full ones.
        sampler: "speculative", or "plain" for the drafts alone.
        mesh: shares out samples and slots over all its devices, each of which works off a queue of its own.

    Returns:
        A `SampleResult` of `num_samples` rows.

    Raises:
        ValueError: as the sampler, and where `slots` is no whole number of at least 1 or the mesh does not divide it.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    canvas.check_count("slots", slots)
    plain = sampler == "plain"
    rows, rules = prepare(
        model, key, config, num_samples, length, prompt, prompt_mask, lengths,
        verify_cost=0.0 if plain else model.verify_cost, mesh=mesh, name="num_samples",
    )  # fmt: skip
    slots = min(slots, num_samples)
    sharded.check_divisible(mesh, slots, "slots")
    one_pass = ancestral.one_pass if plain else speculative.one_pass
    return _sample_many(*sharded.place(mesh, model, rules, rows), one_pass=one_pass, slots=slots, mesh=mesh)


@functools.partial(jax.jit, static_argnames=("one_pass", "slots", "mesh"))
def _sample_many(
    model, rules: Rules, rows: Rows, *, one_pass: Callable, slots: int, mesh: jax.sharding.Mesh | None
) -> SampleResult:
    slots_a_loop = slots if mesh is None else slots // mesh.size
    return sharded.over_devices(functools.partial(_run, one_pass, slots_a_loop), mesh)(model, rules, rows)


@flax.struct.dataclass
class _Queue:
    """`N` samples, of which `B` are in slots.

    Attributes:
        store: canvas of all samples, as they start or finished; those in slots are out of date here.
        canvas: of the slots.
        sample_B: which sample each slot holds. A slot keeps its last one when none is left.
        next_sample: the first that has not been in a slot.
        passes: trunk passes so far.
    """

    store: Canvas
    canvas: Canvas
    sample_B: jax.Array
    next_sample: jax.Array
    passes: jax.Array


def _run(one_pass: Callable, slots: int, model, rules: Rules, rows: Rows) -> SampleResult:
    """`passes.run` with slots; `rows` are all samples."""
    model, lengths_N = prepared(model), jnp.asarray(rows.known_lengths())
    num_samples = lengths_N.shape[0]

    def is_finished(queue: _Queue) -> jax.Array:
        return queue.canvas.num_revealed_B >= lengths_N[queue.sample_B]

    def has_room(queue: _Queue) -> jax.Array:
        return jnp.any(is_finished(queue)) & (queue.next_sample < num_samples)

    def refill(queue: _Queue) -> _Queue:
        finished_B = is_finished(queue)
        candidate_B = queue.next_sample + jnp.cumsum(finished_B, dtype=jnp.int32) - 1
        is_taken_B = finished_B & (candidate_B < num_samples)
        sample_B = jnp.where(is_taken_B, candidate_B, queue.sample_B)
        # Index N is past the end: such rows stay in their slots.
        back_B = jnp.where(is_taken_B, queue.sample_B, num_samples)
        store = jax.tree.map(lambda store, x: store.at[back_B].set(x, mode="drop"), queue.store, queue.canvas)
        choose = lambda store, x: jnp.where(is_taken_B.reshape(-1, *[1] * (x.ndim - 1)), store[sample_B], x)
        return queue.replace(
            store=store,
            canvas=jax.tree.map(choose, store, queue.canvas),
            sample_B=sample_B,
            next_sample=queue.next_sample + jnp.sum(is_taken_B, dtype=jnp.int32),
        )

    def unfinished(queue: _Queue) -> jax.Array:
        return ~jnp.all(is_finished(queue))

    def pass_and_refill(queue: _Queue) -> _Queue:
        canvas = one_pass(model, rules, rows.at(queue.sample_B), queue.canvas)
        # A loop, since a sample that is given in full is finished before it starts.
        return jax.lax.while_loop(has_room, refill, queue.replace(canvas=canvas, passes=queue.passes + 1))

    store = rows.start(model.num_tokens, rules.laws)
    first_B = jnp.arange(slots, dtype=jnp.int32)
    queue = _Queue(store, jax.tree.map(lambda x: x[:slots], store), first_B, jnp.int32(slots), jnp.int32(0))
    queue = jax.lax.while_loop(has_room, refill, queue)
    queue = jax.lax.while_loop(unfinished, pass_and_refill, queue)
    store = jax.tree.map(lambda store, x: store.at[queue.sample_B].set(x), queue.store, queue.canvas)
    return canvas.finish(store, model.trunk_cost, model.verify_cost, queue.passes * slots)
