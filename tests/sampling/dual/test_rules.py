"""Every rule of verification against plain Python, position by position."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from ssmd_jax.sampling.dual import rules
from tests.sampling.dual import twins

# Rule -> fields, two settings each where there is one to set.
CASES = [
    ("trust_verifier", {}),
    ("exact_match", {}),
    ("confidence_threshold", {}),
    ("confidence_threshold", {"tau": 0.4}),
    ("disagreement_with_confidence", {}),
    ("disagreement_with_confidence", {"tau": 0.4}),
    ("kl_divergence", {}),
    ("kl_divergence", {"tau": 0.1}),
    ("unmask_confidence", {}),
    ("unmask_confidence", {"tau": 0.4}),
    ("top_k", {"k": 1}),
    ("top_k", {"k": 3}),
    ("ratio", {}),
    ("ratio", {"alpha": 1.0}),
    ("true_kl", {}),
    ("true_kl", {"kappa": 0.3}),
]
MASK, VOCAB, SHAPE = 6, 7, (4, 9)


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_twin(name, fields):
    rng = np.random.default_rng(0)
    p_logits, q_logits = (rng.normal(scale=2.0, size=(*SHAPE, VOCAB)).astype(np.float32) for _ in range(2))
    # Half of the positions agree nearly, so that no rule rejects all or nothing.
    q_logits = np.where(rng.random(SHAPE)[..., None] < 0.5, p_logits + 0.3 * q_logits, q_logits)
    allowed = lambda x: np.where(np.arange(VOCAB) == MASK, -np.inf, x)
    draft, best = (np.argmax(allowed(x), axis=-1).astype(np.int32) for x in (q_logits, p_logits))
    rule = rules.rule(name, **fields)
    q_log = np.asarray(jax.nn.log_softmax(q_logits))
    evidence = rules.Evidence(
        draft,
        best,
        jax.nn.log_softmax(p_logits),
        np.take_along_axis(q_log, draft[..., None], axis=-1)[..., 0],
        q_log if rule.needs_distribution else None,
    )
    tokens, rejected = rule.judge(evidence)
    for at in np.ndindex(SHAPE):
        p, q = twins.softmax(p_logits[at]), twins.softmax(q_logits[at])
        assert (tokens[at], rejected[at]) == twins.reject(name, fields, p, q, draft[at], best[at]), at
    assert name == "trust_verifier" or 0 < np.sum(rejected) < rejected.size


def test_no_verification_keeps_the_drafts():
    rule = rules.rule("no_verification")
    draft = np.array([[1, 2]])
    tokens, rejected = rule.judge(rules.Evidence(draft, draft + 1, None, None, None))
    assert not rule.needs_verifier and not rejected.any() and (tokens == draft).all()


def test_unknown_rules_and_fields():
    with pytest.raises(ValueError, match="rule 'best' is none of trust_verifier, no_verification"):
        rules.rule("best")
    with pytest.raises(ValueError, match="rule ratio has no field 'tau', only alpha"):
        rules.rule("ratio", tau=0.5)
    with pytest.raises(ValueError, match="k must be a whole number"):
        rules.rule("top_k", k=0)


@pytest.mark.parametrize("name", [name for name, rule in rules.RULES.items() if dataclasses.fields(rule)])
def test_numbers_out_of_range(name):
    field = dataclasses.fields(rules.RULES[name])[0].name
    for value in (math.nan, -1):
        with pytest.raises(ValueError, match=f"{field} must be a "):
            rules.rule(name, **{field: value})
