"""The decoders of `ssmd_jax.sampling.dual` by name, with their arguments as users write them: `steps=64,temperature=1`.

`dualdiffusion` drafts with one of the others, whose arguments stand beside its own.
"""

import dataclasses
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ssmd_jax.sampling import registry
from ssmd_jax.sampling.dual import presets, rules
from ssmd_jax.sampling.dual.commit import Commit, Factor, Fixed, Threshold
from ssmd_jax.sampling.dual.config import DecodeConfig
from ssmd_jax.sampling.dual.dualdiffusion import DualConfig
from ssmd_jax.sampling.dual.proposal import Proposal

DUAL = "dualdiffusion"


def _llada(gen_length: int = 256, block_length: int = 32, steps: int | None = None, **fields):
    return presets.llada(gen_length, block_length, steps, **fields)


def _fast_dllm(cache: str):
    def make(
        gen_length: int = 256,
        block_length: int = 32,
        steps: int | None = None,
        threshold: float = 0.9,
        factor: float | None = None,
        **fields,
    ):
        # Of the three ways to say how many tokens a pass commits, the one that has no default goes first.
        commit: Commit = Threshold(threshold) if factor is None else Factor(factor)
        commit = commit if steps is None else Fixed()
        return presets.fast_dllm(gen_length, block_length, cache, commit, steps=steps, **fields)

    return make


def _dkv(gen_length: int = 256, block_length: int = 32, steps: int | None = None, refresh: int = 8, **fields):
    return presets.dkv_decode(gen_length, block_length, steps, refresh, **fields)


def _dkv_greedy(
    gen_length: int = 256, block_length: int = 32, steps: int | None = None, refresh: int = 2, window: int = 4, **fields
):
    return presets.dkv_greedy(gen_length, block_length, steps, refresh, window, **fields)


def _dream(gen_length: int = 256, steps: int | None = None, **fields):
    return presets.dream(gen_length, steps, **fields)


def _dkv_dream(
    gen_length: int = 256,
    steps: int | None = None,
    cache: str = "decode",
    refresh: int = 4,
    shift_type: str = "un",
    **fields,
):
    return presets.dkv_dream(gen_length, steps, cache, refresh, shift_type, **fields)


class Recipe(NamedTuple):
    """A decoder.

    Attributes:
        make: from its arguments, and `proposal` and other fields of `DecodeConfig`, to its configuration.
        score: what positions are chosen by, by default; see `Proposal`.
    """

    make: Callable
    score: str = "confidence"


RECIPES = {
    "llada": Recipe(_llada),
    "threshold": Recipe(_fast_dllm("none")),
    "prefix": Recipe(_fast_dllm("prefix")),
    "dual": Recipe(_fast_dllm("dual")),
    "dkv": Recipe(_dkv),
    "dkv_greedy": Recipe(_dkv_greedy, "random"),
    "dream": Recipe(_dream, "entropy"),
    "dkv_dream": Recipe(_dkv_dream, "entropy"),
}
SAMPLERS = (*RECIPES, DUAL)


def _shared(
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    score: str | None = None,
    position_temperature: float = 0.0,
    guidance: float = 0.0,
    budget: int | None = None,
    stop: bool = True,
    ban_end: bool = False,
    late_end: bool = False,
):
    """Arguments of every decoder: those of `Proposal`, and three about the end of text.

    `stop` ends a row there, `ban_end` never proposes it (LLaDA's logits_eos_inf), `late_end` commits it last
    (confidence_eos_eot_inf).
    """


def _verifying(
    drafter: str = "dual",
    draft_steps: int = 16,
    rule: str = "trust_verifier",
    rule_value: float | None = None,
    view: str = "visible",
    groups: int | None = None,
    remask: str = "any",
    fix_up: int = 1,
    max_rejections: int | None = None,
):
    """Arguments of `dualdiffusion`: the name of the decoder that drafts, and `DualConfig`'s.

    `rule_value` is the one number that a rule has, its threshold; None for the rule's own.
    """


def parse(text: str) -> dict[str, Any]:
    """`NAME=VALUE,...` with values as JSON has them, or words.

    Raises:
        ValueError: where an equals sign is missing.
    """
    found = {}
    for name, value in registry.pairs(text, "a sampler"):
        try:
            found[name] = json.loads({"none": "null"}.get(value.lower(), value.lower()))
        except ValueError:
            found[name] = value
    return found


def arguments(name: str, given: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """What a sampler can be told, by name.

    Args:
        name: of `SAMPLERS`.
        given: of which "drafter" matters alone.

    Raises:
        ValueError: no such sampler, or drafter.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    own = {}
    if name == DUAL:
        own = dict(inspect.signature(_verifying).parameters)
        name = given.get("drafter", own["drafter"].default)
        if name not in RECIPES:
            raise ValueError(f"drafter must be one of {', '.join(RECIPES)}, got {name!r}")
    known = {**own, **inspect.signature(RECIPES[name].make).parameters, **inspect.signature(_shared).parameters}
    return {field: known[field] for field in known if field != "fields"}


def make(name: str, given: Mapping[str, Any], eos_id: int, ends: Sequence[int] = ()) -> DecodeConfig | DualConfig:
    """The configuration of a sampler.

    Args:
        name: of `SAMPLERS`.
        given: arguments by name; the others have their defaults.
        eos_id: end of text.
        ends: tokens that `ban_end` and `late_end` are about; the end of text always is.

    Raises:
        ValueError: an unknown sampler or argument, a value of another type, or one out of range.
    """
    known = arguments(name, given)
    for field, value in given.items():
        if field not in known:
            raise ValueError(f"sampler {name} has no argument {field!r}; it takes {', '.join(known)}")
        _check(name, field, value, known[field].annotation)
    values = {field: given.get(field, parameter.default) for field, parameter in known.items()}
    drafting = _decoder(values["drafter"] if name == DUAL else name, values, eos_id, ends)
    if name != DUAL:
        return drafting
    own = {field.name for field in dataclasses.fields(DualConfig)} & values.keys()
    rule = rules.rule(values["rule"], **_rule_fields(values["rule"], values["rule_value"]))
    return DualConfig(**{field: values[field] for field in own} | {"drafting": drafting, "rule": rule})


def _decoder(name: str, values: Mapping[str, Any], eos_id: int, ends: Sequence[int]) -> DecodeConfig:
    recipe = RECIPES[name]
    about = tuple(sorted({eos_id, *ends}))
    proposal = Proposal(
        **{field: values[field] for field in ("temperature", "top_p", "top_k", "position_temperature")},
        score=recipe.score if values["score"] is None else values["score"],
        banned=about if values["ban_end"] else (),
        late=about if values["late_end"] else (),
    )
    own = [field for field in inspect.signature(recipe.make).parameters if field != "fields"]
    return recipe.make(
        **{field: values[field] for field in (*own, "guidance", "budget")},
        proposal=proposal,
        eos_id=eos_id if values["stop"] else None,
    )


def _rule_fields(rule: str, value: float | None) -> dict[str, Any]:
    if value is None:
        return {}
    fields = dataclasses.fields(rules.RULES[rule]) if rule in rules.RULES else ()
    if rule in rules.RULES and not fields:
        raise ValueError(f"rule {rule} has no number to set: leave rule_value out")
    # A whole number where the rule wants one; where it is none, the rule says so.
    return {field.name: field.type(value) if value == field.type(value) else value for field in fields}


def _check(name: str, field: str, value: Any, annotation: Any) -> None:
    kinds = typing.get_args(annotation) or (annotation,)
    # JSON writes 1.0 as 1; and True is a whole number to Python alone.
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "none"}
        raise ValueError(f"sampler {name}: {field} must be {' or '.join(names[kind] for kind in kinds)}, got {value!r}")


def drafting_of(config: DecodeConfig | DualConfig) -> DecodeConfig:
    """The settings of the decoder, or of the one that drafts."""
    return config.drafting if isinstance(config, DualConfig) else config


def with_drafting(config: DecodeConfig | DualConfig, **fields: Any) -> DecodeConfig | DualConfig:
    """With other fields of that decoder."""
    drafting = dataclasses.replace(drafting_of(config), **fields)
    return dataclasses.replace(config, drafting=drafting) if isinstance(config, DualConfig) else drafting
