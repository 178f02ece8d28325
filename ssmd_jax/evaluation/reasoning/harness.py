"""Our decoders as a model of EleutherAI's lm-evaluation-harness (`pip install ssmd_jax[harness]`).

Importing this module registers the model "ssmd_jax" there; `launch/harness.py` is its command line.
"""

import collections
from collections.abc import Sequence
from typing import Any

from ssmd_jax.evaluation.reasoning import decoders, generator, likelihood
from ssmd_jax.evaluation.reasoning.generator import Generator
from ssmd_jax.evaluation.reasoning.likelihood import Pair
from ssmd_jax.evaluation.reasoning.prompts import Turn

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError:
    raise ImportError("the adapter needs lm-evaluation-harness: pip install ssmd_jax[harness]") from None

# What a request may say about sampling that is no bound on its text.
SAMPLING = ("temperature", "top_p", "top_k")


@register_model("ssmd_jax")
class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of requests.

    `generate_until` decodes `gen_length` tokens and cuts the text at the first stop string; `loglikelihood` and
    `loglikelihood_rolling` are Monte Carlo estimates over masks, of the network that verifies where there are two.
    """

    def __init__(
        self,
        model: str | Generator,
        verifier: str | None = None,
        sampler: str = "llada",
        mc_num: int = 128,
        check_greedy: bool = True,
        seed: int = 0,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
        pad_to: int = 64,
        dtype: str = "bfloat16",
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        **sampler_args: Any,
    ):
        """Loads the networks.

        Args:
            model: folder of published weights, or a generator that is ready; all about loading is then ignored.
            verifier, sampler, sampler_args, dtype, pad_to, trust_remote_code: see `generator.load`.
            mc_num: masks for each log-likelihood.
            check_greedy: compute whether a continuation is what greedy decoding gives, which LAMBADA's accuracy needs;
                otherwise the harness is told that none is.
            seed: of masks, and of what is random in the decoder.
            batch_size: rows computed at a time.
            max_batch_size, device: given by the harness, not used.
            tokenizer: folder; None for the model's own.

        Raises:
            ValueError, ImportError: as `generator.load`.
        """
        super().__init__()
        del max_batch_size, device
        if not isinstance(model, Generator):
            if not str(batch_size).isdigit():
                raise ValueError(f"batch_size must be a whole number, got {batch_size!r}")
            model = generator.load(
                model,
                verifier,
                sampler=sampler,
                sampler_args=sampler_args,
                tokenizer_folder=tokenizer,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                batch_size=int(batch_size),
                pad_to=pad_to,
            )
        self.generator = model
        self.tokenizer = model.tokenizer.inner
        self.mc_num, self.check_greedy, self.seed = mc_num, check_greedy, seed

    @property
    def eot_token_id(self) -> int:
        return self.generator.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.generator.tokenizer.start_id

    @property
    def tokenizer_name(self) -> str:
        return self.generator.tokenizer.fingerprint()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the model's format."""
        if add_generation_prompt:
            return self.generator.tokenizer.chat([Turn(**turn) for turn in chat_history])
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=False, continue_final_message=True
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Tokens of a text; by default with what the tokenizer puts before one."""
        return self.generator.tokenizer.encode(string, special=add_special_tokens is not False)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts; each depends on its request alone."""
        contexts, texts = [], [""] * len(requests)
        for n, request in enumerate(requests):
            context, wanted = request.args
            self._check_sampling(wanted)
            contexts.append(self.tok_encode(context) or [self.prefix_token_id])
            generator.check_length(self.generator, contexts[-1], f"request {n}")
        # A task that wants several samples gives one request several times.
        seen, keys = collections.Counter(), []
        for name in (repr(request.args) for request in requests):
            keys.append(generator.key_of(self.seed, f"{name} {seen[name]}"))
            seen[name] += 1
        batches = generator.generate(self.generator, contexts, keys)
        total = -(-len(contexts) // self.generator.batch_size)
        for batch in tqdm(batches, "batches of texts", total, disable=disable_tqdm):
            for n, made in batch:
                context, wanted = requests[n].args
                text = self.generator.tokenizer.decode(made.tokens[: wanted.get("max_gen_toks")])
                texts[n] = _cut(text, wanted.get("until"))
                self.cache_hook.add_partial("generate_until", (context, wanted), texts[n])
        return texts

    def _check_sampling(self, wanted: dict[str, Any]) -> None:
        # The decoder was told once; a task that wants another one would be scored for what it is not.
        proposal = decoders.drafting_of(self.generator.config).proposal
        asked = {name: wanted[name] for name in SAMPLING if wanted.get(name) is not None}
        if wanted.get("do_sample") is False or asked.get("temperature") == 0:
            asked = {"temperature": 0.0}
        for name, value in asked.items():
            own = getattr(proposal, name)
            if value != own:
                raise ValueError(
                    f"the task asks for {name} {value}, and the decoder has {own}: give {name}={value} to the sampler, "
                    f"or do_sample=true,{name}={own} to the task (gen_kwargs)"
                )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(context, target) for _, context, target in requests]
        values = self._estimates(pairs, disable_tqdm)
        greedy = [False] * len(pairs)
        if self.check_greedy:
            greedy = likelihood.are_greedy(
                self.generator.model, pairs, batch_size=self.generator.batch_size, pad_to=self.generator.pad_to
            )
        answers = list(zip(values, greedy, strict=True))
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, nats: windows of what the network can hold, each scored by itself."""
        pairs, owners = [], []
        for n, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                # The token before a window is its context.
                max_seq_len=self.generator.model.max_length - 1,
                context_len=1,
            )
            for window in map(utils.make_disjoint_window, windows):
                pairs.append(Pair(*window))
                owners.append(n)
        values = self._estimates(pairs, disable_tqdm)
        totals = [0.0] * len(requests)
        for n, value in zip(owners, values, strict=True):
            totals[n] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _estimates(self, pairs: Sequence[Pair], disable_tqdm: bool) -> list[float]:
        with tqdm(desc="masked rows", total=len(pairs) * self.mc_num, disable=disable_tqdm) as bar:
            found = likelihood.estimates(
                self.generator.model,
                pairs,
                # Of the tokens alone: whatever text they come from, they get one value.
                [generator.key_of(self.seed, f"{pair.context} {pair.target}") for pair in pairs],
                samples=self.mc_num,
                batch_size=self.generator.batch_size,
                pad_to=self.generator.pad_to,
                progress=bar.update,
            )
        return [estimate.value for estimate in found]


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first of the stop strings."""
    stops = [until] if isinstance(until, str) else until or []
    return text[: min((text.find(stop) for stop in stops if stop and stop in text), default=len(text))]


def evaluate(
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    gen_kwargs: str | None = None,
    sampler_args: str = "",
    **loading: Any,
) -> dict[str, Any]:
    """Runs tasks of the harness: what `launch/harness.py` does.

    Args:
        tasks: the harness's names.
        include_path: folder with more tasks, or None.
        limit: questions of a task at most, the first ones; None for all.
        num_fewshot: examples; None for the task's own number.
        chat: in the tokenizer's chat template.
        gen_kwargs: what tasks are told instead of their own, as the harness reads it.
        sampler_args: as `decoders.parse` reads them.
        loading: other arguments of `HarnessModel`.

    Returns:
        The harness's "results", "n-shot", "n-samples" and "versions".

    Raises:
        ValueError: an unknown task, and as `HarnessModel`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ValueError(f"lm-evaluation-harness has no task {unknown[0]!r}: give its folder by --include_path")
    found = simple_evaluate(
        model=HarnessModel(**loading, **decoders.parse(sampler_args)),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        gen_kwargs=gen_kwargs,
        task_manager=manager,
        log_samples=False,
    )
    return {name: found[name] for name in ("results", "n-shot", "n-samples", "versions")}
