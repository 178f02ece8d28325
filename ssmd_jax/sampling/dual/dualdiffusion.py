"""DualDiffusion (arXiv 2604.05250): some passes of a drafter, one forward of a verifier, again.

Implemented is what the paper intends, for a drafter and a verifier with one vocabulary: any cached decoder of the
verifier's own network, or of another one, drafts; the verifier sees the whole text without a cache. Blocks go from
left to right; in one, rounds of drafting and verifying go on until nothing is masked or unverified. Each round settles
at least one position, so that no rule can keep the loop from its end.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssmd_jax.sampling.dual import decode, draft, state, verify
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.request import Rows, rows_of
from ssmd_jax.sampling.dual.rules import Evidence, Rule, TrustVerifier
from ssmd_jax.sampling.dual.state import Block, Progress, Result

REMASKS = ("any", "first_rejection")


@dataclasses.dataclass(frozen=True)
class DualConfig:
    """A drafter's settings and a verifier's. Hashable: it is compiled into the loop.

    Attributes:
        drafting: the decoder that drafts; its lengths, end of text and budget are those of the whole.
        draft_steps: passes of the drafter in a round at most; 0 leaves all to the verifier.
        rule: which drafts are rejected.
        view: what the verifier sees of the drafts: "visible" (as the authors do; the verifier then tends to copy what
            it sees), "masked" (strict: what the verifier alone would say), or "leave_one_out".
        groups: of "leave_one_out", forwards of the verifier in a round at most; None for one a draft.
        remask: "any" masks again what is rejected; "first_rejection" also all drafts behind the first rejected one.
        fix_up: masked positions of the block that take the verifier's token in each round, the surest first.
        max_rejections: rejections at a position after which the verifier's token takes it; None for no bound.
    """

    drafting: DecodeConfig
    draft_steps: int = 16
    rule: Rule = TrustVerifier()  # noqa: RUF009, frozen
    view: str = "visible"
    groups: int | None = None
    remask: str = "any"
    fix_up: int = 1
    max_rejections: int | None = None

    def __post_init__(self):
        for name, allowed in {"view": verify.VIEWS, "remask": REMASKS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in {"draft_steps": 0, "groups": 1, "fix_up": 0, "max_rejections": 1}.items():
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not is_count and not (value is None and name in ("groups", "max_rejections")):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def sample(
    verifier,
    key: jax.Array,
    config: DualConfig,
    prompts: Sequence,
    *,
    drafter=None,
    prompt_length: int | None = None,
) -> Result:
    """Generates text after prompts; arguments and result as in `decode.sample`.

    Args:
        verifier: satisfies `ssmd_jax.sampling.dual.interface.MaskedModel`.
        config: drafter's and verifier's settings.
        drafter: another model with the same vocabulary; None drafts with the verifier's own network, whose forwards
            then refresh the drafter's cache for nothing (not under guidance, in "leave_one_out", or where the network
            shifts and a block's first token needs a pass of its own).

    Raises:
        ValueError: bad arguments, in one sentence.
    """
    drafts = verifier if drafter is None else drafter
    for name in ("vocab_size", "mask_id"):
        one, other = getattr(drafts, name), getattr(verifier, name)
        if one != other:
            raise ValueError(f"drafter and verifier must have one tokenizer: {name} is {one} and {other}")
    if not config.rule.needs_verifier:
        return decode.sample(drafts, key, config.drafting, prompts, prompt_length=prompt_length)
    rows = rows_of(verifier, key, prompts, config.drafting.gen_length, prompt_length)
    if drafts.max_length < rows.prompt_BxP.shape[1] + config.drafting.gen_length:
        raise ValueError(f"the drafter can hold {drafts.max_length} tokens, fewer than prompt and text have")
    budget = decode.BOUNDLESS if config.drafting.budget is None else np.int32(config.drafting.budget)
    config = dataclasses.replace(config, drafting=dataclasses.replace(config.drafting, budget=None))
    return _sample(verifier, drafter, rows, budget, config=config)


@functools.partial(jax.jit, static_argnames="config")
def _sample(verifier, drafter, rows: Rows, budget: jax.Array, *, config: DualConfig) -> Result:
    drafting, prompt_length = config.drafting, rows.prompt_BxP.shape[1]
    drafts = draft.guided(verifier if drafter is None else drafter, drafting, prompt_length)
    feeding = drafting.feeding
    is_shared = drafter is None and not drafting.guidance and config.view != "leave_one_out"
    refreshes = is_shared and feeding.caches and not (verifier.shifts and feeding.first_alone)

    def finish_block(progress: Progress, block: Block) -> Progress:
        masked = lambda progress: block.of(progress.tokens_BxL) == verifier.mask_id

        def active(progress: Progress) -> jax.Array:
            open_Bxb = masked(progress) | block.of(progress.drafted_BxL)
            return jnp.any(open_Bxb, axis=1) & ~progress.is_done_B

        def drafts_more(progress: Progress) -> jax.Array:
            # A round ends with the verifier, whose forward is kept.
            can_pay_B = progress.spent_B + drafting.cost + 1 <= block.allowance
            return jnp.any(masked(progress), axis=1) & ~progress.is_done_B & can_pay_B

        def one_draft(carry):
            count, progress = carry
            never_B = jnp.zeros_like(progress.is_done_B)
            progress, drafted_Bxb = draft.draft_pass(
                drafts, drafting, rows, progress, block, drafts_more(progress), never_B
            )
            drafted_Bxb |= block.of(progress.drafted_BxL)
            return count + 1, progress.replace(drafted_BxL=block.put(progress.drafted_BxL, drafted_Bxb))

        def one_round(progress: Progress) -> Progress:
            active_B = active(progress)
            if config.draft_steps:
                more = lambda carry: (carry[0] < config.draft_steps) & jnp.any(drafts_more(carry[1]))
                _, progress = jax.lax.while_loop(more, one_draft, (jnp.int32(0), progress))
            progress = verify_round(verifier, config, rows, progress, block, active_B, refreshes)
            return state.with_ends(verifier, progress, prompt_length, drafting.eos_id)

        return jax.lax.while_loop(lambda progress: jnp.any(active(progress)), one_round, progress)

    return decode.run_blocks(drafts, drafting, rows, budget, 1, config.rule.needs_distribution, finish_block)


def verify_round(
    verifier, config: DualConfig, rows: Rows, progress: Progress, block: Block, active_B: jax.Array, refreshes: bool
) -> Progress:
    """The verifier's look at the drafts of the active rows, and what the rule makes of them."""
    length = progress.tokens_BxL.shape[1]
    groups = block.size if config.groups is None else config.groups
    tokens_Bxb = block.of(progress.tokens_BxL)
    drafted_Bxb = block.of(progress.drafted_BxL) & active_B[:, None]
    masked_Bxb = (tokens_Bxb == verifier.mask_id) & active_B[:, None]
    known_BxL = progress.tokens_BxL != verifier.mask_id
    seen = verify.look(verifier, config.view, groups, rows, progress, block, active_B)
    is_mask_1x1xV = (jnp.arange(verifier.vocab_size) == verifier.mask_id)[None, None]
    evidence = Evidence(
        draft_Bxb=jnp.where(drafted_Bxb, tokens_Bxb, 0),
        best_Bxb=jnp.argmax(jnp.where(is_mask_1x1xV, -jnp.inf, seen.logits_BxbxV), axis=-1).astype(jnp.int32),
        log_prob_BxbxV=jax.nn.log_softmax(seen.logits_BxbxV),
        draft_log_prob_Bxb=progress.draft_log_prob_Bxb,
        draft_log_prob_BxbxV=None
        if progress.draft_logits_BxbxV is None
        else jax.nn.log_softmax(progress.draft_logits_BxbxV),
    )
    decision = verify.decide(
        config.rule,
        evidence,
        drafted_Bxb,
        masked_Bxb,
        progress.rejections_Bxb,
        # No forward would be left for another round.
        progress.spent_B + seen.forwards_B + 1 > block.allowance,
        first_rejection=config.remask == "first_rejection",
        fix_up=config.fix_up,
        max_rejections=config.max_rejections,
    )
    settled_Bxb = decision.accepted_Bxb | decision.replaced_Bxb
    after_Bxb = jnp.where(settled_Bxb, decision.tokens_Bxb, verifier.mask_id)
    after_Bxb = jnp.where(drafted_Bxb | masked_Bxb, after_Bxb, tokens_Bxb)
    total = lambda x_Bxb: jnp.sum(x_Bxb, axis=1, dtype=jnp.int32)
    length_B = length if rows.is_prompt_BxP is None else length - total(~jnp.asarray(rows.is_prompt_BxP))
    progress = progress.add(
        verifier_forwards=seen.forwards_B,
        verifier_positions=seen.forwards_B * length_B,
        iterations=active_B.astype(jnp.int32),
        accepted=total(decision.accepted_Bxb),
        rejected=total(decision.rejected_Bxb),
        replaced=total(decision.replaced_Bxb),
    )
    progress = progress.replace(
        tokens_BxL=block.put(progress.tokens_BxL, after_Bxb),
        drafted_BxL=jnp.zeros_like(progress.drafted_BxL),
        rejections_Bxb=progress.rejections_Bxb + decision.rejected_Bxb,
        passes=progress.passes + jnp.stack([jnp.int32(0), seen.num_passes]),
        step=jnp.int32(config.drafting.feeding.step_after_refresh if refreshes else 0),
    )
    if refreshes:
        # Keys of a token count as its own only if this forward saw that very token.
        stale_Bxb = drafted_Bxb if config.view == "masked" else after_Bxb != tokens_Bxb
        known_BxL &= ~block.put(jnp.zeros_like(known_BxL), stale_Bxb)
        seen_BxL = jnp.where(active_B[:, None], known_BxL, progress.seen_BxL)
        progress = progress.replace(cache=seen.cache, seen_BxL=seen_BxL)
    return progress
