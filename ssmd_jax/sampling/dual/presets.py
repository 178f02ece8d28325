"""The public decoders as configurations."""

from ssmd_jax.sampling.dual.commit import Commit, Threshold, Timesteps
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.feeding import Dual, Feeding, FrozenPrompt, Greedy, Prefix, Settled, ShiftedSettled
from ssmd_jax.sampling.dual.proposal import Proposal

FAST_DLLM_CACHES: dict[str, Feeding] = {"none": Feeding(), "prefix": Prefix(), "dual": Dual()}
ENTROPY, NINE_TENTHS = Proposal(score="entropy"), Threshold(0.9)
DREAM_CACHES = ("decode", "prefill", "pd")


def llada(gen_length: int, block_length: int, steps: int, **fields) -> DecodeConfig:
    """LLaDA's sampler (arXiv 2502.09992): low-confidence remasking, `steps` passes over all blocks.

    Its options are fields: `guidance`; `proposal=Proposal(score="random")`, `banned=(eos,)` for logits_eos_inf,
    `late=(eos, eot)` for confidence_eos_eot_inf.
    """
    return DecodeConfig(gen_length, block_length, steps, **fields)


def fast_dllm(
    gen_length: int, block_length: int, cache: str = "dual", commit: Commit = NINE_TENTHS, **fields
) -> DecodeConfig:
    """Fast-dLLM (arXiv 2505.22618) on LLaDA or Dream.

    Args:
        gen_length, block_length: as in `DecodeConfig`.
        cache: "none", "prefix" or "dual".
        commit: `Fixed()` with the field `steps`, `Threshold`, `Factor`; `Timesteps()` for Dream.
        fields: of `DecodeConfig`; `paper=True` for the public version that spends a cached pass in every block.
    """
    if cache not in FAST_DLLM_CACHES:
        raise ValueError(f"cache must be one of {', '.join(FAST_DLLM_CACHES)}, got {cache!r}")
    return DecodeConfig(gen_length, block_length, feeding=FAST_DLLM_CACHES[cache], commit=commit, **fields)


def dkv_decode(gen_length: int, block_length: int, steps: int, refresh: int = 8, **fields) -> DecodeConfig:
    """dKV-Cache-Decode (arXiv 2505.15781) on LLaDA."""
    return DecodeConfig(gen_length, block_length, steps, feeding=Settled(refresh), **fields)


def dkv_greedy(
    gen_length: int, block_length: int, steps: int, refresh: int = 2, window: int = 4, **fields
) -> DecodeConfig:
    """dKV-Cache-Greedy on LLaDA, whose remasking is random."""
    proposal = fields.pop("proposal", Proposal(score="random"))
    return DecodeConfig(gen_length, block_length, steps, feeding=Greedy(refresh, window), proposal=proposal, **fields)


def dream(gen_length: int, steps: int, proposal: Proposal = ENTROPY, **fields) -> DecodeConfig:
    """Dream's sampler (arXiv 2508.15487): no blocks, its own schedule.

    `proposal` has the score "entropy", "margin" (topk_margin) or "shaped_confidence" (maskgit_plus), temperature,
    top_p, top_k, and `position_temperature` for alg_temp; `commit=Origin()` is its "origin".
    """
    commit = fields.pop("commit", Timesteps())
    return DecodeConfig(gen_length, None, steps, commit=commit, proposal=proposal, **fields)


def dkv_dream(
    gen_length: int, steps: int, cache: str = "decode", refresh: int = 4, shift_type: str = "un", **fields
) -> DecodeConfig:
    """dKV-Cache on Dream.

    Args:
        gen_length, steps: as in `dream`.
        cache: "decode"; "prefill", which keeps the prompt's keys alone, for good; "pd", both.
        refresh, shift_type: as in `ShiftedSettled`; play no part in "prefill".
        fields: of `dream`.
    """
    if cache not in DREAM_CACHES:
        raise ValueError(f"cache must be one of {', '.join(DREAM_CACHES)}, got {cache!r}")
    settled = ShiftedSettled(refresh, shift_type, freeze_prompt=cache == "pd")
    return dream(gen_length, steps, feeding=FrozenPrompt() if cache == "prefill" else settled, **fields)
