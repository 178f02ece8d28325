"""Rules of verification (DualDiffusion, arXiv 2604.05250): which drafts a verifier rejects, and what replaces the rest.

A rule looks at one forward of the verifier. Rules that judge the verifier's own tokens put them in the place of the
drafts that they accept, as the public code does; rules that judge the drafts keep them.
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ssmd_jax.sampling.dual.commit import require_number


class Evidence(NamedTuple):
    """What a rule sees of a block. Positions that are not drafted hold anything.

    Attributes:
        draft_Bxb: int32, the drafts.
        best_Bxb: int32, the verifier's likeliest tokens, never the mask.
        log_prob_BxbxV: float32, the verifier's log-probabilities.
        draft_log_prob_Bxb: float32, the log-probability that the drafter gave each draft.
        draft_log_prob_BxbxV: float32, the drafter's of all tokens; None unless the rule asks for it.
    """

    draft_Bxb: jax.Array
    best_Bxb: jax.Array
    log_prob_BxbxV: jax.Array
    draft_log_prob_Bxb: jax.Array
    draft_log_prob_BxbxV: jax.Array | None

    def prob_of(self, tokens_Bxb: jax.Array) -> jax.Array:
        """The verifier's probability of tokens."""
        return jnp.exp(jnp.take_along_axis(self.log_prob_BxbxV, tokens_Bxb[..., None], axis=-1)[..., 0])


class Rule(Protocol):
    """A frozen dataclass, compiled into the loop.

    Attributes:
        needs_verifier: whether it looks at the verifier at all.
        needs_distribution: whether it asks for all of the drafter's log-probabilities.
    """

    needs_verifier: bool
    needs_distribution: bool

    def judge(self, evidence: Evidence) -> tuple[jax.Array, jax.Array]:
        """Tokens int32 `[B, b]` in the place of drafts that are accepted, and bool `[B, b]`, which are rejected."""
        ...


class _Rule:
    needs_verifier = True
    needs_distribution = False

    def __post_init__(self):
        # All fields of these rules are thresholds.
        for field in dataclasses.fields(self):
            require_number(self, field.name, least=0)


@dataclasses.dataclass(frozen=True)
class TrustVerifier(_Rule):
    """Rejects nothing; the verifier's tokens replace the drafts."""

    def judge(self, evidence):
        return evidence.best_Bxb, jnp.zeros(evidence.best_Bxb.shape, bool)


@dataclasses.dataclass(frozen=True)
class NoVerification(_Rule):
    """The drafts as they are: the drafter alone, and no forward of the verifier is spent."""

    needs_verifier = False

    def judge(self, evidence):
        return evidence.draft_Bxb, jnp.zeros(evidence.draft_Bxb.shape, bool)


@dataclasses.dataclass(frozen=True)
class ExactMatch(_Rule):
    """Rejects drafts that are not the verifier's likeliest token."""

    def judge(self, evidence):
        return evidence.best_Bxb, evidence.draft_Bxb != evidence.best_Bxb


@dataclasses.dataclass(frozen=True)
class ConfidenceThreshold(_Rule):
    """Rejects where the verifier is less sure than `tau` of its own token, which replaces the others."""

    tau: float = 0.9

    def judge(self, evidence):
        return evidence.best_Bxb, evidence.prob_of(evidence.best_Bxb) < self.tau


@dataclasses.dataclass(frozen=True)
class DisagreementWithConfidence(_Rule):
    """Rejects what `ExactMatch` or `ConfidenceThreshold` rejects."""

    tau: float = 0.9

    def judge(self, evidence):
        differs_Bxb = evidence.draft_Bxb != evidence.best_Bxb
        return evidence.best_Bxb, differs_Bxb | (evidence.prob_of(evidence.best_Bxb) < self.tau)


@dataclasses.dataclass(frozen=True)
class DraftConfidence(_Rule):
    """Rejects drafts to which the verifier gives a probability below `tau`.

    The public code calls this "kl_divergence", though it has no divergence in it; see `KLDivergence`.
    """

    tau: float = 0.5

    def judge(self, evidence):
        return evidence.draft_Bxb, evidence.prob_of(evidence.draft_Bxb) < self.tau


@dataclasses.dataclass(frozen=True)
class UnmaskConfidence(_Rule):
    """Rejects where the verifier gives no token at all, the mask included, a probability of `tau`."""

    tau: float = 0.9

    def judge(self, evidence):
        return evidence.best_Bxb, jnp.exp(jnp.max(evidence.log_prob_BxbxV, axis=-1)) < self.tau


@dataclasses.dataclass(frozen=True)
class TopK(_Rule):
    """Ours. Rejects drafts for which the verifier holds `k` tokens or more likelier."""

    k: int = 5

    def __post_init__(self):
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number of at least 1, got {self.k!r}")

    def judge(self, evidence):
        own = jnp.take_along_axis(evidence.log_prob_BxbxV, evidence.draft_Bxb[..., None], axis=-1)
        return evidence.draft_Bxb, jnp.sum(evidence.log_prob_BxbxV > own, axis=-1) >= self.k


@dataclasses.dataclass(frozen=True)
class Ratio(_Rule):
    """Ours. Rejects drafts with `p(draft) < alpha q(draft)`, verifier's `p` and drafter's `q`."""

    alpha: float = 0.5

    def judge(self, evidence):
        return evidence.draft_Bxb, evidence.prob_of(evidence.draft_Bxb) < self.alpha * jnp.exp(
            evidence.draft_log_prob_Bxb
        )


@dataclasses.dataclass(frozen=True)
class KLDivergence(_Rule):
    """Ours. Rejects where `KL(q || p)`, in nats, is `kappa` or more; keeps `b x V` float32 of the drafter a row."""

    kappa: float = 1.0
    needs_distribution = True

    def judge(self, evidence):
        q = evidence.draft_log_prob_BxbxV
        kl_Bxb = jnp.sum(jnp.where(q > -jnp.inf, jnp.exp(q) * (q - evidence.log_prob_BxbxV), 0.0), axis=-1)
        return evidence.draft_Bxb, kl_Bxb >= self.kappa


RULES = {
    "trust_verifier": TrustVerifier,
    "no_verification": NoVerification,
    "exact_match": ExactMatch,
    "confidence_threshold": ConfidenceThreshold,
    "disagreement_with_confidence": DisagreementWithConfidence,
    "kl_divergence": DraftConfidence,
    "unmask_confidence": UnmaskConfidence,
    "top_k": TopK,
    "ratio": Ratio,
    "true_kl": KLDivergence,
}


def rule(name: str, **fields) -> Rule:
    """A rule by the name that the public code has for it, or ours.

    Raises:
        ValueError: no such rule, or a field that it does not have.
    """
    if name not in RULES:
        raise ValueError(f"rule {name!r} is none of {', '.join(RULES)}")
    known = [field.name for field in dataclasses.fields(RULES[name])]
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise ValueError(f"rule {name} has no field {unknown[0]!r}, only {', '.join(known) or 'none'}")
    return RULES[name](**fields)
