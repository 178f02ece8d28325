"""How fast masked language models decode: plain, prefix cache, dual cache, dKV-Cache and DualDiffusion.

Every decoder commits a fixed number of tokens a pass, so that all make as many draft passes whatever the weights say;
DualDiffusion adds one forward of the verifier a block, whose tokens it trusts. Beside the decoders two passes are
measured alone: a full one, and one over a block against a cache.

The roofline of a pass is reading the weights once or computing what is fed, whichever takes longer at the rates that
this device was measured at; keys and values are left out of it.
"""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.evaluation.benchmark import masked_lm, program
from ssmd_jax.evaluation.benchmark.bench import Bench, ceilings_of
from ssmd_jax.evaluation.benchmark.dual_settings import DualSettings, make_settings
from ssmd_jax.evaluation.benchmark.rows import Row, table
from ssmd_jax.evaluation.reasoning.decoders import drafting_of
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.sampling.dual import decode, dualdiffusion, passes
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig
from ssmd_jax.sampling.dual.feeding import Dual, Feeding, Prefix, Settled
from ssmd_jax.sampling.dual.proposal import Proposal
from ssmd_jax.sampling.dual.state import Block, Result
from ssmd_jax.training.terminal import say

SUITE = "dual"
PASSES = ("full pass", "dual step")
DECODERS = ("plain", "prefix", "dual", "dkv", "dualdiffusion")


def decoders(settings: DualSettings) -> dict[str, DecodeConfig | DualConfig]:
    """The configurations by name."""
    fixed = lambda feeding: DecodeConfig(settings.gen_length, settings.block_length, settings.steps, feeding=feeding)
    made = {
        "plain": fixed(Feeding()),
        "prefix": fixed(Prefix(settings.buckets)),
        "dual": fixed(Dual()),
        "dkv": fixed(Settled(settings.refresh, settings.buckets)),
    }
    # The drafter finishes a block before the verifier sees it.
    draft_steps = settings.block_length // settings.tokens_a_step
    return made | {"dualdiffusion": DualConfig(made["dual"], draft_steps=draft_steps)}


def generate(model, key: jax.Array, *, config: DecodeConfig | DualConfig, prompts: np.ndarray) -> Result:
    """A whole text for each prompt, by the public functions."""
    sample = dualdiffusion.sample if isinstance(config, DualConfig) else decode.sample
    return sample(model, key, config, prompts)


def full_pass(model, tokens_BxL: jax.Array, start: jax.Array, *, size: int):
    """One pass over everything: tokens and scores of the block."""
    done = passes.full(model, tokens_BxL, None, Block(start, start, size))
    return Proposal().propose(None, model.logits(done.h_BxbxC), model.mask_id)


def dual_steps(model, tokens_BxL: jax.Array, start: jax.Array, *, size: int, count: int):
    """`count` passes over the block alone, each over the tokens of the last: they share one cache, as in a decoder."""
    batch, length = tokens_BxL.shape
    block, slots_1xL = Block(start, start, size), jnp.arange(length)[None]
    fed_BxL = jnp.broadcast_to((slots_1xL >= start) & (slots_1xL < start + size), tokens_BxL.shape)

    def one(_, carry):
        tokens_BxL, cache, _ = carry
        done = passes.partial(model, tokens_BxL, None, block, cache, fed_BxL, size)
        tokens_Bxb, score_Bxb = Proposal().propose(None, model.logits(done.h_BxbxC), model.mask_id)
        return block.put(tokens_BxL, tokens_Bxb), done.cache, score_Bxb

    carry = (tokens_BxL, model.init_cache(batch, length), jnp.zeros((batch, size)))
    tokens_BxL, _, score_Bxb = jax.lax.fori_loop(0, count, one, carry)
    return block.of(tokens_BxL), score_Bxb


class Job(NamedTuple):
    """A part to measure.

    Attributes:
        part: its name.
        batch: rows.
        function: of `args`.
        args: arrays.
        finish: `(row, result) -> row` with what the part's result adds.
    """

    part: str
    batch: int
    function: Callable
    args: tuple
    finish: Callable[[Row, Any], Row]


def jobs(bench: Bench) -> list[Job]:
    """All parts that are wanted, the passes of each batch before its decoders."""
    settings, model, found = bench.settings, bench.model, []
    rng = np.random.default_rng(settings.seed)
    size, length = settings.block_length, settings.length
    # The block in the middle of the text.
    start = np.int32(settings.prompt_length + settings.gen_length // size // 2 * size)
    for batch in settings.batches:
        ids = rng.integers(0, settings.model.vocab_size - 1, (batch, length), dtype=np.int32)
        tokens_BxL = ids + (ids >= settings.model.mask_id)  # any token but the mask
        on_pass = (model, *jax.device_put((tokens_BxL, start)))
        one = functools.partial(_finish_pass, bench, batch)
        count = settings.loop_steps
        full, cached = PASSES
        found += [
            Job(f"{full} B={batch}", batch, functools.partial(full_pass, size=size), on_pass, one(length, 1)),
            Job(
                f"{cached} B={batch}",
                batch,
                functools.partial(dual_steps, size=size, count=count),
                on_pass,
                one(size, count),
            ),
        ]
        prompts = tokens_BxL[:, : settings.prompt_length]
        on_text = (model, jax.random.key(settings.seed))
        for name, config in decoders(settings).items():
            finish = functools.partial(_finish_text, bench, batch, config)
            function = functools.partial(generate, config=config, prompts=prompts)
            found.append(Job(f"{name} B={batch}", batch, function, on_text, finish))
    return [job for job in found if bench.wants(job.part)]


def _finish_pass(bench: Bench, batch: int, fed: int, count: int) -> Callable[[Row, Any], Row]:
    settings = bench.settings
    shape = (batch, fed, settings.length, settings.block_length)
    total = count * masked_lm.pass_flops(settings.model, *shape)

    def finish(row: Row, _) -> Row:
        figures = {"batch_size": batch, "seconds_per_pass": row.timing.median / count}
        if bench.ceilings is not None:
            least = count * masked_lm.roofline_seconds(bench.model, bench.ceilings, *shape)
            figures |= _shares(bench, row, count, least)
        return dataclasses.replace(row, flops=total, figures=figures)

    return finish


def _finish_text(bench: Bench, batch: int, config: DecodeConfig | DualConfig, row: Row, result: Result) -> Row:
    settings, result = bench.settings, jax.device_get(result)
    length, predicted = settings.length, settings.block_length
    full, cached, fed = kinds_of_passes(settings, config, result)
    kinds = [(full, length)] + ([(cached, fed)] if cached else [])
    flops = sum(count * masked_lm.pass_flops(settings.model, batch, each, length, predicted) for count, each in kinds)
    figures = {
        "batch_size": batch,
        "tokens_per_second": batch * settings.gen_length / row.timing.median,
        "seconds_per_pass": row.timing.median / (full + cached),
        "drafter_passes": int(result.drafter_passes),
        "verifier_passes": int(result.verifier_passes),
        "full_passes": full,
        "positions_of_a_cached_pass": fed,
    }
    if bench.ceilings is not None:
        least = sum(
            count * masked_lm.roofline_seconds(bench.model, bench.ceilings, batch, each, length, predicted)
            for count, each in kinds
        )
        figures |= _shares(bench, row, full + cached, least)
    return dataclasses.replace(row, flops=flops, figures=figures)


def _shares(bench: Bench, row: Row, count: int, least: float) -> dict[str, float]:
    """Of the seconds measured: what reading the weights `count` times takes, and the roofline's `least` seconds."""
    reading = count * masked_lm.weight_bytes(bench.model) / bench.ceilings.copy_bytes
    return {
        "share_of_weight_reading": reading / row.timing.median,
        "share_of_roofline": least / row.timing.median,
    }


def kinds_of_passes(settings: DualSettings, config, result: Result) -> tuple[int, int, float]:
    """Full passes, those of the verifier among them; cached passes; and what a row feeds to each of these, on average.

    Raises:
        RuntimeError: where the decoder did not make the passes of its schedule, so that the figures would mean nothing.
    """
    drafting = drafting_of(config)
    drafted, verified = int(result.drafter_passes), int(result.verifier_passes)
    if drafted != settings.steps:
        raise RuntimeError(f"the decoder made {drafted} draft passes, and its schedule has {settings.steps}")
    in_a_block = sum(bool(drafting.feeding.is_full(step)) for step in range(drafting.steps_per_block))
    full = drafting.num_blocks * in_a_block
    cached = drafted - full
    fed = float(np.mean(result.drafter_positions)) - full * settings.length
    return full + verified, cached, fed / cached if cached else 0.0


def compile_all(bench: Bench, wanted: list[Job]) -> dict[str, concurrent.futures.Future]:
    """Compiles every part, several at a time, and waits for all: nothing may compile beside a running clock."""
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(bench.settings.compilers) as pool:
        # The last parts are the largest programs.
        found = {job.part: pool.submit(bench.compile, job.function, *job.args) for job in reversed(wanted)}
    bench.say(f"{len(found)} programs compiled in {time.perf_counter() - began:.1f} s")
    return found


def measure(bench: Bench, job: Job, compiled: concurrent.futures.Future) -> Row:
    """One part's row.

    Raises:
        Exception: what compiling it raised.
    """
    ready, last = compiled.result(), []

    def call():
        last[:] = [ready.compiled(*job.args)]
        return last[0]

    timed = bench.time(SUITE, job.part, call, single=job.part.split(" B=")[0] in DECODERS)
    return job.finish(Row(SUITE, job.part, timed, ready._replace(compiled=None)), last[0])


def benchmark(
    *,
    preset: str = "tiny",
    parts: str = "",
    profile: str | None = None,
    say: Callable[[str], None] = say,
    **overrides,
) -> dict[str, Any]:
    """Measures the ceilings and all parts on the first device; a part that fails is a row with the reason.

    Args:
        preset: see `dual_settings.PRESETS`.
        parts: only parts whose name ("dual step B=1") holds one of these words, separated by commas; "" for all.
        profile: folder for a trace of one call of each part.
        say: told of every part when it is done, and of the table at the end.
        **overrides: as `dual_settings.make_settings`; None for the preset's.

    Returns:
        What JSON knows: `device`, `jax`, `settings`, `ceilings`, `parameters`, `weight_bytes`, `rows`, `ratios` (tokens
        per second over those of the plain decoder), `peak_bytes`, `seconds`.

    Raises:
        ValueError: for bad settings, before anything runs.
        RecompilationError: where a timed region compiled.
    """
    began = time.perf_counter()
    settings = make_settings(preset, **overrides)
    words = tuple(word.strip() for word in parts.split(",") if word.strip())
    names = [f"{name} B={batch}" for batch in settings.batches for name in (*PASSES, *DECODERS)]
    for word in words:
        if not any(word in name for name in names):
            raise ValueError(f"parts: no part is called {word!r}; there are {', '.join(names)}")
    device = jax.local_devices()[0]
    say(f"{device.device_kind}, jax {jax.__version__}, {preset}, attention {settings.model.attention}")
    ceilings, ceilings_error = ceilings_of(device, settings, say)
    model = masked_lm.random_model(settings.model, settings.seed)
    say(f"weights after {time.perf_counter() - began:.1f} s")
    bench = Bench(settings, model, device, ceilings, say, profile, words)
    wanted = jobs(bench)
    compiled = compile_all(bench, wanted)
    rows = []
    for job in wanted:
        rows += bench.row(SUITE, job.part, functools.partial(measure, bench, job, compiled[job.part]))
        # Said as it comes, for a run that is cut off.
        say(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].figures.items()) or str(rows[-1].error))
    say(table(rows, ceilings))
    programs = [row.program.program_bytes for row in rows if row.program and row.program.program_bytes]
    return to_json(
        {
            "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
            "jax": jax.__version__,
            "settings": dataclasses.asdict(settings),
            "ceilings": None if ceilings is None else ceilings._asdict(),
            "ceilings_error": ceilings_error,
            "parameters": sum(x.size for x in jax.tree.leaves(model.params)),
            "weight_bytes": masked_lm.weight_bytes(model),
            "rows": [row.to_json(ceilings) for row in rows],
            "ratios": ratios(rows),
            "peak_bytes": program.peak_bytes(device) or max(programs, default=math.nan),
            "seconds": time.perf_counter() - began,
        }
    )


def ratios(rows: list[Row]) -> dict[str, float]:
    """Tokens per second of each decoder over those of the plain one at the same batch, by part."""
    speeds = {row.part: row.figures["tokens_per_second"] for row in rows if "tokens_per_second" in row.figures}
    plain = {part.split(" B=")[1]: speed for part, speed in speeds.items() if part.startswith("plain ")}
    return {
        f"{part} over plain": speed / plain[part.split(" B=")[1]]
        for part, speed in speeds.items()
        if not part.startswith("plain ") and part.split(" B=")[1] in plain
    }
