"""The sampling suite: a pass taken apart, whole samples of both samplers, and the naive model beside the fast one."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.diffusion.speculation import accept_reject_round, categorical
from ssmd_jax.evaluation.benchmark import flops, program
from ssmd_jax.evaluation.benchmark.bench import Bench
from ssmd_jax.evaluation.benchmark.naive import NaiveModel
from ssmd_jax.evaluation.benchmark.rows import Row
from ssmd_jax.evaluation.benchmark.settings import Settings
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.sampling import ancestral, keys, speculative
from ssmd_jax.sampling.canvas import SampleResult
from ssmd_jax.sampling.interface import prepared
from ssmd_jax.sampling.many import sample_many

SUITE = "sampling"
PARTS = (
    "blocks",
    "trunk",
    "draft",
    "verify round",
    "naive draft",
    "naive verify round",
    "speculative",
    "plain",
    "naive speculative",
    "batch 1",
    "many",
)
# Part "many": samples for each slot, one after the other.
SAMPLES_A_SLOT = 4


def blocks_alone(model, tokens_BxD, positions_BxD, start_B):
    """The bidirectional blocks: `h`."""
    network, variables = HybridTransformer(model.config), {"params": model.params}
    masked_BxD = jnp.where(jnp.arange(tokens_BxD.shape[1])[None] < start_B[:, None], tokens_BxD, model.num_tokens)
    return network.apply(variables, masked_BxD, positions_BxD, method=HybridTransformer.trunk)


def trunk_alone(model, tokens_BxD, positions_BxD, start_B):
    """A trunk pass over full rows: the context."""
    return model.trunk(tokens_BxD, positions_BxD, start_B, np.full(*tokens_BxD.shape))


def draft(model, tokens_BxD, positions_BxD, start_B, row_keys_B, *, settings: Settings):
    """A pass up to its drafts: context, draft logits, `log p`, tokens."""
    size, laws = settings.window_size, settings.sampler.laws
    context = trunk_alone(model, tokens_BxD, positions_BxD, start_B)
    logits_BxSxV = model.draft_logits(context, start_B, size)
    log_p_BxSxV = laws.proposal(logits_BxSxV)
    drafts_BxS = categorical(keys.fold_tracks(row_keys_B, start_B, size), log_p_BxSxV)
    return context, logits_BxSxV, log_p_BxSxV, drafts_BxS


def verify(model, drafted, tokens_BxD, positions_BxD, start_B, row_keys_B, *, settings: Settings):
    """One verify round at the static window: target logits, accept or reject, replace."""
    context, logits_BxSxV, log_p_BxSxV, drafts_BxS = drafted
    size, laws = settings.window_size, settings.sampler.laws
    target_BxSxV = model.target_logits(context, tokens_BxD, positions_BxD, start_B, size)
    log_q_BxSxV = laws.target(target_BxSxV, logits_BxSxV)
    zeros_B, whole_B = jnp.zeros_like(start_B), jnp.full_like(start_B, size)
    return accept_reject_round(row_keys_B, drafts_BxS, log_p_BxSxV, log_q_BxSxV, start_B, zeros_B, whole_B)


def random_rows(settings: Settings, batch_size: int):
    """Tokens, positions and numbers of revealed tokens as they occur in the middle of sampling, and a key a row."""
    rng = np.random.default_rng(settings.seed)
    shape = (batch_size, settings.length)
    tokens_BxD = rng.integers(0, settings.model.num_tokens, shape, dtype=np.int32)
    positions_BxD = rng.permuted(np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape), axis=1)
    start_B = rng.integers(0, shape[1], batch_size, dtype=np.int32)
    return *jax.device_put((tokens_BxD, positions_BxD, start_B)), keys.row_keys(jax.random.key(1), batch_size)


def run(bench: Bench) -> list[Row]:
    """All rows of the suite: parts of a pass, whole samples, and the latency of one sample."""
    model, naive = bench.model, NaiveModel(bench.model.params, bench.model.config)
    rows = [*_parts(bench, "", model), *_parts(bench, "naive ", naive)]
    batch = bench.settings.batch_size
    one_batch = functools.partial(speculative.sample, batch_size=batch)
    through_slots = functools.partial(sample_many, num_samples=SAMPLES_A_SLOT * batch, slots=batch)
    for part, measured, draw, rows_a_pass in (
        ("speculative", model, one_batch, batch),
        ("plain", model, functools.partial(ancestral.sample, batch_size=batch), batch),
        ("naive speculative", naive, one_batch, batch),
        ("batch 1", model, functools.partial(speculative.sample, batch_size=1), 1),
        ("many", model, through_slots, batch),
    ):
        rows += bench.row(SUITE, part, functools.partial(_samples, bench, part, measured, draw, rows_a_pass))
    return rows


def _parts(bench: Bench, prefix: str, model) -> list[Row]:
    """A pass taken apart. The naive model's trunk is the blocks, so it has no rows for these."""
    settings, config = bench.settings, bench.settings.model
    model = prepared(model)
    batch, length, size = settings.batch_size, settings.length, settings.window_size
    *batch_rows, row_keys_B = random_rows(settings, batch)
    # What the compiler can count: no loop over the blocks, no fused kernel.
    countable = dataclasses.replace(config, attention="xla", mlp="xla", unroll=config.n_noncausal)
    blocks = flops.blocks(config, batch, length)
    if isinstance(model, NaiveModel):
        trunk, draft_tracks = blocks, batch * length
        a_round = flops.naive_round(config, batch, length)
    else:
        trunk, draft_tracks = flops.trunk(config, batch, length), batch * size
        a_round = flops.verify_round(config, batch, length, size)
    drafting = functools.partial(draft, settings=settings)
    # Compiled once for two rows: a round needs the context and the drafts of a real pass.
    draft_args = (model, *batch_rows, row_keys_B)
    compiled_draft = functools.cache(lambda: bench.compile(drafting, *draft_args))

    def measured(part: str, function: Callable, formula: float, args: Callable, compiled=lambda: None) -> list[Row]:
        def make() -> Row:
            arrays = args()
            row = bench.function(SUITE, prefix + part, function, model, *arrays, compiled=compiled(), flops=formula)
            if config == countable:
                counted = row.program.compiler_flops
            else:
                counted = program.count_flops(function, model.replace(config=countable), *arrays)
            return dataclasses.replace(row, compiler_flops=counted)

        return bench.row(SUITE, prefix + part, make)

    rows, plain_args = [], lambda: batch_rows
    if not isinstance(model, NaiveModel):
        rows += measured("blocks", blocks_alone, blocks, plain_args)
        rows += measured("trunk", trunk_alone, trunk, plain_args)
    formula = trunk + flops.head(config, draft_tracks)
    rows += measured("draft", drafting, formula, lambda: (*batch_rows, row_keys_B), compiled_draft)
    verify_args = lambda: (compiled_draft().compiled(*draft_args), *batch_rows, row_keys_B)
    rows += measured("verify round", functools.partial(verify, settings=settings), a_round, verify_args)
    return rows


def _samples(bench: Bench, part: str, model, draw: Callable, rows_a_pass: int) -> Row:
    """Whole samples by the public function, compiled as one program.

    FLOPs are those of the rows that needed them, with windows of the static size.
    """
    settings, config = bench.settings, bench.settings.model

    def sample(model, key) -> SampleResult:
        return draw(model, key, settings.sampler, length=settings.length)

    # The key is an argument of the program: the prompt (none) and the windows are constants of it.
    key = jax.random.key(settings.seed)
    compiled = bench.compile(sample, model, key)
    timed = bench.time(SUITE, part, lambda: compiled.compiled(model, key), single=True)
    result = jax.device_get(compiled.compiled(model, key))

    length, size = settings.length, settings.window_size
    num_samples = len(result.tokens)
    passes, rounds = (int(x.sum()) for x in (result.trunk_passes, result.verify_rounds))
    is_naive = isinstance(model, NaiveModel)
    one_pass = flops.blocks(config, 1, length) if is_naive else flops.trunk(config, 1, length)
    one_pass += flops.head(config, length if is_naive else size)
    one_round = flops.naive_round(config, 1, length) if is_naive else flops.verify_round(config, 1, length, size)
    verified = int(result.accepted.sum() + result.rejected.sum())
    rows_computed = int(result.rows_computed.sum())
    steps = rows_computed // rows_a_pass
    figures = {
        "batch_size": rows_a_pass,
        "seconds_per_sample": timed.median / num_samples,
        "seconds_per_pass": timed.median / steps,
        "tokens_per_second": num_samples * length / timed.median,
        "nfe": float(result.nfe.mean()),
        "passes": passes / num_samples,
        "verify_rounds": rounds / num_samples,
        "acceptance": float(result.accepted.sum()) / verified if verified else None,
        # A batch waits for its slowest row: what share of the rows' passes was needed.
        "loop_passes": steps,
        "share_of_passes_needed": passes / rows_computed,
    }
    if bench.ceilings is not None:
        weights = sum(x.size for x in jax.tree.leaves(model.params)) * config.compute_dtype.itemsize
        figures["seconds_to_read_weights"] = steps * weights / bench.ceilings.copy_bytes
    return Row(
        SUITE, part, timed, compiled._replace(compiled=None), passes * one_pass + rounds * one_round, figures=figures
    )


def ratios(rows: list[Row]) -> dict[str, float]:
    """Speculative against plain sampling at equal windows, and the naive model against the fast one.

    Returns:
        `speculative_over_plain_seconds`, `speculative_over_plain_nfe`, and their quotient `seconds_over_nfe`, 1 where
        seconds follow NFE; for every part that both models have, `naive_over_fast_seconds: PART`, and the same of
        `temp_bytes`.
    """
    by_part = {row.part: row for row in rows if row.suite == SUITE and row.timing is not None}
    found = {}
    fast, plain = by_part.get("speculative"), by_part.get("plain")
    if fast and plain:
        found["speculative_over_plain_seconds"] = fast.timing.median / plain.timing.median
        found["speculative_over_plain_nfe"] = fast.figures["nfe"] / plain.figures["nfe"]
        found["seconds_over_nfe"] = found["speculative_over_plain_seconds"] / found["speculative_over_plain_nfe"]
    for part, row in by_part.items():
        naive = by_part.get(f"naive {part}")
        if naive is None:
            continue
        found[f"naive_over_fast_seconds: {part}"] = naive.timing.median / row.timing.median
        if row.program.temp_bytes:
            found[f"naive_over_fast_temp_bytes: {part}"] = naive.program.temp_bytes / row.program.temp_bytes
    return found
