"""Trains small models in the layout of LLaDA on arithmetic, by the loss that LLaDA is tuned with (arXiv 2502.09992).

A time t is uniform on (0, 1) for each row, every token of its answer is masked with probability
`p = (1 - eps) t + eps`, and the loss is the cross-entropy of the masked ones over p, by the number of answer tokens;
questions are never masked. Answers end in ends of text, which are learnt as tokens.

A network that is to verify what stands visibly before it (DUAL.md section 1.2, view "visible") must have learnt to: by
that loss alone its predictions for tokens that it sees are never trained. With `corrupted`, some of the tokens shown
are replaced, and all that are shown are learnt as what they should be.

All problems lie on the device, and a call computes many steps: the host has nothing to do between them. SIGTERM and
Ctrl-C end the run after the call that is computed, and the model is saved as it then is.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssmd_jax.data import arithmetic, characters
from ssmd_jax.diffusion.masking import strata
from ssmd_jax.model import pretrained
from ssmd_jax.model.bidirectional import BidirectionalConfig, BidirectionalTransformer
from ssmd_jax.model.masked_lm import MaskedLanguageModel
from ssmd_jax.training import keys
from ssmd_jax.training.config import OptimizerConfig
from ssmd_jax.training.interrupts import Interrupts
from ssmd_jax.training.optimizer import make_optimizer, make_schedule
from ssmd_jax.training.terminal import say

RESULTS_FILE = "training.json"
# Of the tokens shown, replaced to see whether wrong ones are corrected.
HELD_OUT_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run.

    Attributes:
        model: the network; its vocabulary is that of `data/characters.py`.
        optimizer: see `OptimizerConfig`.
        digits: of the numbers in the problems.
        prompt_length: tokens of a question at most.
        gen_length: tokens of an answer, ends of text among them.
        num_problems: of the training split, drawn beforehand.
        gsm8k: file of GSM8K's training split, learnt beside them as running text; "" for none.
        num_held_out: of the other, on which the loss is taken at the end.
        num_steps: steps.
        batch_size: rows of a step.
        log_every: steps of a call, after which the loss is told; divides `num_steps`.
        ema_decay: of the average of the weights that is saved; 0 saves the last.
        least_ratio: `eps`, the least probability to mask.
        corrupted: share of the answer tokens shown that are replaced, see `corrupt`; then all tokens shown are learnt,
            too. 0 for LLaDA's loss alone.
        seed: of weights, problems and masks.
    """

    model: BidirectionalConfig
    optimizer: OptimizerConfig
    digits: int = 3
    prompt_length: int = 112
    gen_length: int = 64
    num_problems: int = 300_000
    gsm8k: str = ""
    num_held_out: int = 1024
    num_steps: int = 5000
    batch_size: int = 256
    log_every: int = 100
    ema_decay: float = 0.999
    least_ratio: float = 1e-3
    corrupted: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("num_problems", "num_held_out", "num_steps", "batch_size", "log_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.num_steps % self.log_every:
            raise ValueError(f"num_steps {self.num_steps} is not divisible by log_every {self.log_every}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay!r}")
        if not 0 <= self.corrupted < 1:
            raise ValueError(f"corrupted must lie in [0, 1), got {self.corrupted!r}")
        if self.corrupted and self.batch_size == 1:
            raise ValueError("corrupted takes tokens from other rows: give a batch_size of at least 2, or corrupted=0")
        if not 0 < self.least_ratio < 1:
            raise ValueError(f"least_ratio must lie in (0, 1), got {self.least_ratio!r}")
        if self.prompt_length + self.gen_length > self.model.max_length:
            raise ValueError(
                f"prompt_length {self.prompt_length} and gen_length {self.gen_length} are more than model.max_length "
                f"{self.model.max_length}"
            )

    @classmethod
    def from_config_dict(cls, config) -> "Experiment":
        """From a `ConfigDict` with the sections `model` and `optimizer`.

        Raises:
            ValueError: naming the field that is out of range.
        """
        fields = config.to_dict()
        ids = {"vocab_size": characters.VOCAB_SIZE, "mask_id": characters.MASK_ID, "eos_id": characters.EOS_ID}
        model = BidirectionalConfig(**fields.pop("model"), **ids)
        return cls(model, OptimizerConfig(**fields.pop("optimizer")), **fields)


@flax.struct.dataclass
class State:
    """What a step changes.

    Attributes:
        step: int32 scalar.
        params: float32.
        ema_params: their average; the same as `params` without one.
        opt_state: of the optimiser.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any


def init_params(config: BidirectionalConfig, key: jax.Array):
    """Fresh parameters, float32."""
    return nn.unbox(BidirectionalTransformer(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"])


def draw_masks(key: jax.Array, shape: tuple[int, int], least_ratio: float) -> tuple[jax.Array, jax.Array]:
    """Which answer tokens are masked, bool `[B, G]`, and the probability of it, `[B, 1]`.

    The times of a batch cover (0, 1) evenly: each is uniform, and the loss varies less than with independent ones.
    """
    offset = jax.random.uniform(keys.stream(key, "time"))
    time_B = (strata(shape[0]) / jnp.float32(shape[0]) + offset) % 1.0
    ratio_Bx1 = ((1 - least_ratio) * time_B + least_ratio)[:, None]
    return jax.random.uniform(keys.stream(key, "mask"), shape) < ratio_Bx1, ratio_Bx1


def corrupt(key: jax.Array, answers_BxG: jax.Array, share: float) -> jax.Array:
    """Answers with a share of tokens in rows 1, 3, 5, ... replaced by those of the same place in rows drawn at random.

    Some replacements are what they replace, since rows agree in many places and a row may be drawn for itself.

    Args:
        key: a typed key.
        answers_BxG: int32.
        share: of the tokens of these rows, replaced independently.

    Returns:
        int32 `[B, G]`.
    """
    batch, size = answers_BxG.shape
    other_BxG = jax.random.randint(keys.stream(key, "other rows"), (batch, size), 0, batch)
    is_replaced_BxG = jax.random.uniform(keys.stream(key, "wrong"), (batch, size)) < share
    is_replaced_BxG &= jnp.arange(batch)[:, None] % 2 == 1
    return jnp.where(is_replaced_BxG, answers_BxG[other_BxG, jnp.arange(size)], answers_BxG)


def answer_logits(params, config: BidirectionalConfig, tokens_BxL, start_B, seen_BxG) -> jax.Array:
    """What the network says of an answer, float32 `[B, G, V]`.

    Args:
        params, config: of the network.
        tokens_BxL: int32, of which the question is read.
        start_B: where it begins; what is before is padding.
        seen_BxG: int32, what stands in the place of the answer.
    """
    network, size = BidirectionalTransformer(config), seen_BxG.shape[1]
    shown_BxL = jnp.concatenate([tokens_BxL[:, :-size], seen_BxG], axis=1)
    real_BxL = jnp.arange(tokens_BxL.shape[1])[None] >= start_B[:, None]
    h_BxLxC, _ = network.apply({"params": params}, shown_BxL, None, None, real_BxL, method="hidden")
    return network.apply({"params": params}, h_BxLxC[:, -size:], method="logits")


def masked_loss(
    params, config: BidirectionalConfig, tokens_BxL, start_B, masked_BxG, ratio_Bx1, shown_BxG=None
) -> jax.Array:
    """LLaDA's loss, nats an answer token: an upper bound of the negative log-likelihood, in expectation over masks.

    Args:
        params: of the network.
        config: of the network.
        tokens_BxL: int32, questions and answers.
        start_B: where the questions begin; what is before is padding.
        masked_BxG: bool, masked tokens of the answers, which are the last `G`.
        ratio_Bx1: their probabilities to be masked.
        shown_BxG: int32, what the network sees of answer tokens that are not masked; these are then learnt as well,
            with weight 1, and the loss is a bound no more. None for the tokens themselves, which are not learnt.
    """
    batch, size = masked_BxG.shape
    answers_BxG = tokens_BxL[:, -size:]
    seen_BxG = jnp.where(masked_BxG, config.mask_id, answers_BxG if shown_BxG is None else shown_BxG)
    logits_BxGxV = answer_logits(params, config, tokens_BxL, start_B, seen_BxG)
    nll_BxG = optax.softmax_cross_entropy_with_integer_labels(logits_BxGxV, answers_BxG)
    return jnp.sum(jnp.where(masked_BxG, nll_BxG / ratio_Bx1, 0.0 if shown_BxG is None else nll_BxG)) / (batch * size)


def batch_loss(params, experiment: Experiment, tokens_BxL: jax.Array, start_B: jax.Array, key: jax.Array) -> jax.Array:
    """`masked_loss` with masks, and replaced tokens if the experiment asks for them, drawn from `key`."""
    tokens_BxL, size = tokens_BxL.astype(jnp.int32), experiment.gen_length
    masks = draw_masks(key, (tokens_BxL.shape[0], size), experiment.least_ratio)
    shown_BxG = corrupt(key, tokens_BxL[:, -size:], experiment.corrupted) if experiment.corrupted else None
    return masked_loss(params, experiment.model, tokens_BxL, start_B, *masks, shown_BxG)


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    return make_optimizer(experiment.optimizer, make_schedule(experiment.optimizer, experiment.num_steps))


@functools.partial(jax.jit, static_argnames="experiment")
def init_state(key: jax.Array, *, experiment: Experiment) -> State:
    """A fresh state."""
    params = init_params(experiment.model, keys.stream(key, "weights"))
    # A copy, since the step donates its input and one buffer cannot be donated twice.
    return State(jnp.int32(0), params, jax.tree.map(jnp.copy, params), _optimizer(experiment).init(params))


@functools.partial(jax.jit, static_argnames="experiment", donate_argnums=0)
def train_steps(
    state: State, tokens_NxL, start_N, key: jax.Array, *, experiment: Experiment
) -> tuple[State, jax.Array]:
    """`log_every` steps, each on rows drawn at random; the mean of their losses.

    Args:
        state: overwritten.
        tokens_NxL, start_N: all problems.
        key: of the run; a step's own comes from its number.
        experiment: static.
    """
    optimizer = _optimizer(experiment)

    def one(state: State, _):
        step_key = jax.random.fold_in(key, state.step)
        chosen_B = jax.random.randint(keys.stream(step_key, "rows"), (experiment.batch_size,), 0, len(start_N))
        loss_and_gradient = jax.value_and_grad(batch_loss)
        loss, gradient = loss_and_gradient(state.params, experiment, tokens_NxL[chosen_B], start_N[chosen_B], step_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A mean over the steps so far, until there are enough of them for the average to forget the first.
        decay = jnp.minimum(experiment.ema_decay, (state.step + 1.0) / (state.step + 10.0))
        decay = decay if experiment.ema_decay else 0.0
        ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
        return State(state.step + 1, params, ema_params, opt_state), loss

    state, loss_T = jax.lax.scan(one, state, None, length=experiment.log_every)
    return state, jnp.mean(loss_T)


_held_out_loss = jax.jit(batch_loss, static_argnames="experiment")


def held_out(experiment: Experiment) -> list[tuple[np.ndarray, np.ndarray, jax.Array]]:
    """Batches of held-out problems: `(tokens_BxL, start_B, key)`, those beyond a multiple of the batch left out."""
    found = list(arithmetic.problems("test", experiment.num_held_out, experiment.seed, experiment.digits))
    tokens_NxL, start_N = arithmetic.rows(found, experiment.prompt_length, experiment.gen_length)
    size, key = min(experiment.batch_size, len(found)), keys.stream(jax.random.key(experiment.seed), "held out")
    firsts = range(0, len(found) - size + 1, size)
    return [(tokens_NxL[n : n + size], start_N[n : n + size], jax.random.fold_in(key, n)) for n in firsts]


def held_out_loss(params, experiment: Experiment, batches) -> tuple[float, float]:
    """LLaDA's loss on `held_out` batches, and its standard error over them (nan where there is one)."""
    experiment = dataclasses.replace(experiment, corrupted=0.0)
    losses = [float(_held_out_loss(params, experiment, *batch)) for batch in batches]
    error = float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    return float(np.mean(losses)), error


@functools.partial(jax.jit, static_argnames="experiment")
def _corrections(params, experiment: Experiment, tokens_BxL, start_B, key) -> jax.Array:
    """Numbers of tokens: wrong ones, those of them said right; right ones, those of them said right."""
    tokens_BxL = tokens_BxL.astype(jnp.int32)
    answers_BxG = tokens_BxL[:, -experiment.gen_length :]
    seen_BxG = corrupt(key, answers_BxG, HELD_OUT_SHARE)
    is_said_BxG = answer_logits(params, experiment.model, tokens_BxL, start_B, seen_BxG).argmax(axis=-1) == answers_BxG
    is_wrong_BxG = seen_BxG != answers_BxG
    return jnp.stack([jnp.stack([which.sum(), (which & is_said_BxG).sum()]) for which in (is_wrong_BxG, ~is_wrong_BxG)])


def corrections(params, experiment: Experiment, batches) -> tuple[float, float]:
    """What a verifier that sees the drafts does: shares of wrong tokens corrected, and of right ones kept.

    Answers of `held_out` batches are seen whole, with `HELD_OUT_SHARE` of the tokens replaced as by `corrupt`.
    """
    counts = sum(np.asarray(_corrections(params, experiment, *batch)) for batch in batches)
    return tuple(float(said / all_ if all_ else math.nan) for all_, said in counts)


def training_rows(experiment: Experiment) -> arithmetic.Rows:
    """The training problems, and behind them the rows of GSM8K where the experiment names its file; raises as these."""
    sizes = (experiment.prompt_length, experiment.gen_length)
    # First, since a file that is not there should not cost the problems.
    text = arithmetic.gsm8k_rows(os.path.expanduser(experiment.gsm8k), *sizes) if experiment.gsm8k else None
    found = arithmetic.problems("train", experiment.num_problems, experiment.seed, experiment.digits)
    rows = arithmetic.rows(list(found), *sizes)
    return rows if text is None else arithmetic.Rows(*map(np.concatenate, zip(rows, text, strict=True)))


def train(config, output: os.PathLike | str, say: Callable[[str], None] = say) -> dict[str, Any]:
    """Trains a model and saves it as models are published, with its tokenizer.

    Args:
        config: a `ConfigDict` of `Experiment`.
        output: folder; must not hold a model yet.
        say: told of the loss.

    Returns:
        `steps` done, `stopped_by` (the signal that ended the run early, or None), `loss` (of the last call; no bound
        with `corrupted`), `held_out_loss` with its standard error,
        `parameters`, `seconds` of all and `seconds_per_step` (compilation apart, nan where the first call was the only
        one), shares of wrong tokens `corrected` and of right ones `kept` as by `corrections` (None where there were
        none), `output`.

    Raises:
        ValueError: bad settings, or a folder that holds a model.
        FloatingPointError: where the loss is no longer finite; nothing is saved.
    """
    experiment, folder, began = Experiment.from_config_dict(config), pathlib.Path(output), time.perf_counter()
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model already: give another --output, or remove it")
    rows = jax.device_put(training_rows(experiment))
    key = jax.random.key(experiment.seed)
    state = init_state(key, experiment=experiment)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    say(f"{parameters} parameters, {len(rows.start_N)} rows of training after {time.perf_counter() - began:.1f} s")
    calls, first_end = experiment.num_steps // experiment.log_every, math.nan
    with Interrupts() as interrupts:
        for call in range(calls):
            state, loss = train_steps(state, *rows, keys.stream(key, "train"), experiment=experiment)
            loss, now, step = float(loss), time.perf_counter(), int(state.step)
            first_end = first_end if call else now
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} after step {step}: lower optimizer.learning_rate")
            say(f"step {step}: loss {loss:.4f}, {now - began:.1f} s")
            stopped_by = interrupts.agreed(is_meeting=True) if step < experiment.num_steps else None
            if stopped_by:
                say(f"{stopped_by}: saving the model of step {step} of {experiment.num_steps}")
                break
    timed_steps = step - experiment.log_every
    per_step = (now - first_end) / timed_steps if timed_steps else math.nan
    batches = held_out(experiment)
    value, error = held_out_loss(state.ema_params, experiment, batches)
    corrected, kept = corrections(state.ema_params, experiment, batches)
    # In the dtype of computation: no decoder reads more of it.
    saved = jax.tree.map(lambda x: x.astype(experiment.model.compute_dtype), state.ema_params)
    pretrained.save(folder, MaskedLanguageModel(saved, experiment.model))
    characters.write_tokenizer(folder)
    known = lambda figure: None if math.isnan(figure) else figure
    result = {
        "steps": step,
        "stopped_by": stopped_by,
        "loss": loss,
        "held_out_loss": value,
        "held_out_loss_standard_error": known(error),
        "corrected": known(corrected),
        "kept": known(kept),
        "parameters": parameters,
        "seconds": time.perf_counter() - began,
        "seconds_per_step": known(per_step),
        "output": str(folder),
    }
    content = {"experiment": dataclasses.asdict(experiment), "result": result}
    (folder / RESULTS_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return result
