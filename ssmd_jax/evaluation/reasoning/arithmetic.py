"""Accuracy on held-out arithmetic problems against forwards, operations and seconds, for every decoder of a pair.

The pair is a drafter and a verifier that `training/masked_lm.py` trained. Each decoder is a point: finished points are
lines of a journal, from which an interrupted run resumes.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssmd_jax.data import arithmetic, characters
from ssmd_jax.evaluation import statistics
from ssmd_jax.evaluation.reasoning import answers, decoders, frontier, generator, journal
from ssmd_jax.evaluation.reasoning.frontier import BOTH, SHARED
from ssmd_jax.evaluation.reasoning.generator import Generated, Generator
from ssmd_jax.model import pretrained
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.training.terminal import say

JOURNAL, RESULTS = "points.jsonl", "results.json"
DRAFTER, VERIFIER = "drafter", "verifier"
STEPS, CACHED_STEPS, THRESHOLDS = (8, 16, 32, 64), (16, 32, 64), (0.5, 0.7, 0.9, 0.97)
RULES = (
    "trust_verifier",
    "exact_match",
    "confidence_threshold",
    "disagreement_with_confidence",
    "kl_divergence",
    "unmask_confidence",
    "top_k",
    "ratio",
    "true_kl",
)
# Passes of the drafter in a round.
DRAFT_STEPS = (2, 6)
# Of the drafter under a verifier, which sees what it is not sure of.
DRAFT_THRESHOLD = 0.7
# Where the verifier checks what its own caches made of it.
SHARED_RULES = ("trust_verifier", "exact_match", "kl_divergence")
# These reject by what the verifier says where it does not see the drafts.
MASKED_RULES = ("exact_match", "kl_divergence")


class Setting(NamedTuple):
    """A decoder of one network or of both.

    Attributes:
        method: points of one method are drawn alike.
        networks: "drafter" or "verifier" alone, "both", or "shared": the verifier checks drafts of its own, made with
            caches.
        sampler: of `decoders.SAMPLERS`.
        arguments: as `decoders.make` takes them.
    """

    method: str
    networks: str
    sampler: str
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique among settings."""
        return f"{self.method}: " + ",".join(f"{name}={value}" for name, value in self.arguments.items())


def settings() -> list[Setting]:
    """All points: each network alone, the verifier's caches, the pair under every rule, drafts of its own."""
    found = [
        Setting(f"{network} alone", network, "llada", {"steps": steps})
        for network in (DRAFTER, VERIFIER)
        for steps in STEPS
    ]
    found += [
        Setting(f"{network} {sampler}", network, sampler, {"threshold": threshold})
        for network, sampler in ((DRAFTER, "dual"), (VERIFIER, "threshold"), (VERIFIER, "prefix"), (VERIFIER, "dual"))
        for threshold in THRESHOLDS
    ]
    found += [Setting("verifier dkv", VERIFIER, "dkv", {"steps": steps}) for steps in CACHED_STEPS]

    def verified(method: str, networks: str, **arguments) -> Setting:
        drafting = {"drafter": "dual", "threshold": DRAFT_THRESHOLD}
        return Setting(f"{decoders.DUAL} {method}", networks, decoders.DUAL, drafting | arguments)

    found += [verified(rule, BOTH, rule=rule, draft_steps=steps) for rule in RULES for steps in DRAFT_STEPS]
    # What the verifier would say without seeing the drafts.
    found += [
        verified(f"{rule}, masked", BOTH, rule=rule, draft_steps=DRAFT_STEPS[-1], view="masked")
        for rule in MASKED_RULES
    ]
    found += [
        verified(f"shared {rule}", SHARED, rule=rule, draft_steps=steps, view="visible")
        for rule in SHARED_RULES
        for steps in DRAFT_STEPS
    ]
    found += [
        verified(f"shared {rule}, masked", SHARED, rule=rule, draft_steps=steps, view="masked")
        for rule in MASKED_RULES
        for steps in DRAFT_STEPS
    ]
    return found


class Pair(NamedTuple):
    """The networks."""

    drafter: MaskedLanguageModel
    verifier: MaskedLanguageModel


def load_pair(drafter: os.PathLike | str, verifier: os.PathLike | str, dtype: str) -> Pair:
    """The networks of two folders.

    Raises:
        ValueError: a folder without a model, or one that reads other tokens than `data/characters.py`.
    """
    for folder in (drafter, verifier):
        config = pretrained.read_config(folder, dtype)
        if (config.vocab_size, config.mask_id) != (characters.VOCAB_SIZE, characters.MASK_ID):
            raise ValueError(
                f"the model in {folder} has {config.vocab_size} tokens and is none of the arithmetic experiment: train "
                "one by launch/train_masked_lm.py"
            )
    return Pair(*(pretrained.load(folder, dtype=dtype) for folder in (drafter, verifier)))


def forward_flops(model: MaskedLanguageModel) -> float:
    """Of one position: twice the parameters but for the embedding; attention, small here, is left out."""
    everything = sum(x.size for x in jax.tree.leaves(model.params))
    return 2.0 * (everything - model.params["embedding"].size)


def measure(
    pair: Pair,
    setting: Setting,
    asked: Sequence[arithmetic.Problem],
    *,
    gen_length: int,
    block_length: int,
    prompt_length: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """One point, over all problems.

    Args:
        pair: the networks.
        setting: the decoder.
        asked: held-out problems.
        gen_length, block_length: tokens of answers and of their blocks.
        prompt_length: what questions are padded to.
        batch_size: rows computed at a time.
        seed: of what is random in a decoder.

    Returns:
        `accuracy` (the number), `exact` (every step as the program wrote it), `drafter_forwards`, `verifier_forwards`,
        their sum `forwards`, `gflop` and `answer_tokens` a problem, each with its standard error; `seconds` a problem.
    """
    given = {"gen_length": gen_length, "block_length": block_length, **setting.arguments}
    config = decoders.make(setting.sampler, given, characters.EOS_ID)
    model = pair.drafter if setting.networks == DRAFTER else pair.verifier
    drafter = pair.drafter if setting.networks == BOTH else None
    using = Generator(model, drafter, None, config, batch_size, prompt_length)
    prompts = [characters.encode(problem.question) for problem in asked]
    row_keys = [generator.key_of(seed, str(n)) for n in range(len(asked))]
    made: dict[int, Generated] = {}
    for batch in generator.generate(using, prompts, row_keys):
        made |= dict(batch)
    return summary([made[n] for n in range(len(asked))], asked, *costs(pair, setting))


def costs(pair: Pair, setting: Setting) -> tuple[float, float]:
    """Operations of a position fed to what drafts (or decodes alone), and to what verifies."""
    drafts = pair.verifier if setting.networks in (VERIFIER, SHARED) else pair.drafter
    return forward_flops(drafts), forward_flops(pair.verifier)


def summary(
    made: Sequence[Generated], asked: Sequence[arithmetic.Problem], draft_flops: float, verify_flops: float
) -> dict[str, Any]:
    """What the answers to problems come to; see `measure`."""
    texts = [characters.decode(one.tokens) for one in made]
    count = lambda name: np.array([one.counts[name] for one in made], np.float64)
    flops = draft_flops * count("drafter_positions") + verify_flops * count("verifier_positions")
    by_problem = {
        "accuracy": [answers.number(text) == str(problem.answer) for text, problem in zip(texts, asked, strict=True)],
        "exact": [text == problem.solution for text, problem in zip(texts, asked, strict=True)],
        "drafter_forwards": count("drafter_forwards"),
        "verifier_forwards": count("verifier_forwards"),
        "forwards": count("drafter_forwards") + count("verifier_forwards"),
        "gflop": flops / 1e9,
        "answer_tokens": count("num_tokens"),
    }
    found = {}
    for name, values in by_problem.items():
        estimate = statistics.mean(np.asarray(values, np.float64))
        found |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    return statistics.to_json(found | {"seconds": float(np.mean([one.seconds for one in made]))})


def evaluate(
    drafter: os.PathLike | str,
    verifier: os.PathLike | str,
    output: os.PathLike | str,
    *,
    num_problems: int = 1024,
    batch_size: int = 128,
    gen_length: int = 64,
    block_length: int = 32,
    prompt_length: int = 112,
    digits: int = 3,
    methods: Sequence[str] = (),
    dtype: str = "bfloat16",
    seed: int = 0,
    plot: os.PathLike | str | None = None,
    say: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Measures the points that the journal in a folder does not have yet.

    Args:
        drafter, verifier: folders of the networks.
        output: folder of `points.jsonl` and `results.json`.
        num_problems: held-out problems a point.
        batch_size, gen_length, block_length, prompt_length, seed: see `measure`.
        digits: of the problems, as the networks were trained on.
        methods: only those whose name holds one of these words; () for all.
        dtype: of parameters and computation.
        plot: picture of the points; None for none.
        say: told of every point when it is done.

    Returns:
        `settings`, `points` by name, and `margins`, see `frontier.margins`.

    Raises:
        ValueError: bad settings, before anything is measured.
    """
    if plot is not None:
        frontier.check()
    if num_problems < 1:
        raise ValueError(f"num_problems must be a whole number of at least 1, got {num_problems}")
    wanted = [each for each in settings() if not methods or any(word in each.method for word in methods)]
    if not wanted:
        known = ", ".join(dict.fromkeys(each.method for each in settings()))
        raise ValueError(f"no method is called {' or '.join(methods)}: there are {known}")
    pair, folder = load_pair(drafter, verifier, dtype), pathlib.Path(output)
    # Of another seed than the loss at the end of training.
    asked = list(arithmetic.problems("test", num_problems, seed + 1, digits))
    shapes = {"gen_length": gen_length, "block_length": block_length, "prompt_length": prompt_length}
    run = shapes | {"batch_size": batch_size, "seed": seed}
    made_with = run | {
        "num_problems": num_problems,
        "digits": digits,
        "dtype": dtype,
        "device": jax.local_devices()[0].device_kind,
        "drafter": generator.fingerprint(drafter),
        "verifier": generator.fingerprint(verifier),
    }
    points = {record["id"]: record for record in journal.resume(folder / JOURNAL, made_with)}
    for setting in wanted:
        if setting.name in points:
            continue
        point = {"id": setting.name, "method": setting.method, "networks": setting.networks}
        point |= measure(pair, setting, asked, **run)
        journal.append(folder / JOURNAL, [point])
        points[setting.name] = point
        forwards = f"{point['drafter_forwards']:.1f} + {point['verifier_forwards']:.1f} forwards"
        say(f"{setting.name}: {100 * point['accuracy']:.1f} %, {forwards}, {1e3 * point['seconds']:.2f} ms a problem")
    results = {"settings": made_with, "points": points, "margins": frontier.margins(list(points.values()))}
    (folder / RESULTS).write_text(json.dumps(results, indent=2), encoding="utf-8")
    if plot is not None:
        frontier.plot(list(points.values()), plot)
    return results
