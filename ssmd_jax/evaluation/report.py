"""The whole evaluation of a trained model: bounds, distance table, samplers, acceptance."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

import ssmd_jax
from ssmd_jax.data import pipeline
from ssmd_jax.data.buckets import Sequences
from ssmd_jax.data.pipeline import Data, Records
from ssmd_jax.data.tokenizers import Tokenizer
from ssmd_jax.evaluation import bench, likelihood, tables, text
from ssmd_jax.evaluation.critics import run_settings
from ssmd_jax.evaluation.settings import DEFAULT_SETTINGS, Setting, make_config
from ssmd_jax.evaluation.statistics import to_json
from ssmd_jax.model.bound import HybridModel
from ssmd_jax.model.networks import make_network
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.terminal import say
from ssmd_jax.training.validation import Validation, make_eval_step, validate

SPLITS = ("valid", "test")


def load_data(experiment: ExperimentConfig, folder: os.PathLike | str | None = None) -> Data:
    """The run's data.

    Args:
        experiment: of the run.
        folder: where the files are now, if not where they were; they have the same names.

    Raises:
        ValueError, FileNotFoundError: as `pipeline.load_data`.
    """
    config = experiment.data
    if folder is not None:
        config = config.in_folder(os.path.expanduser(folder))
    return pipeline.load_data(config, experiment.length)


def held_out_records(data: Data, split: str) -> Records:
    """The records of a split that was not trained on.

    Raises:
        ValueError: for another split, where there is no test split, or for proteins, which have judges of their own.
    """
    if isinstance(data.train, Sequences):
        raise ValueError(
            "the run was trained on proteins: draw with launch/sample.py, judge with launch/judge_proteins.py"
        )
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split == "test" and data.test is None:
        raise ValueError("the run's data have no test split (data.test, or data.test_fraction): evaluate split valid")
    return data.valid if split == "valid" else data.test


def validation(model: HybridModel, experiment: ExperimentConfig, records: Records) -> Validation:
    """The training program's validation: on its records the same batches, orders and masks."""
    training = experiment.training
    eval_step = jax.jit(make_eval_step(make_network(model.config), experiment.loss))
    batches = pipeline.eval_batches(
        records, batch_size=training.validation_batch_size, num_batches=training.eval_batches
    )
    return validate(eval_step, model.params, batches, jax.random.key(experiment.seed))


def check_sizes(**sizes: int) -> None:
    """Refuses numbers out of range; `likelihood_sequences` may be 0, all others must be at least 1.

    Raises:
        ValueError: naming the number.
    """
    for name, value in sizes.items():
        least = 0 if name == "likelihood_sequences" else 1
        if value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")


def evaluate(
    model: HybridModel,
    tokenizer: Tokenizer,
    experiment: ExperimentConfig,
    data: Data,
    settings: Sequence[Setting],
    config: SpeculativeConfig,
    *,
    num_samples: int,
    batch_size: int,
    likelihood_sequences: int,
    orders: int,
    split: str = "valid",
    seed: int = 0,
    words: frozenset[str] | None = None,
    texts: os.PathLike | str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All figures of a model.

    Args:
        model: the trained model.
        tokenizer: of the model.
        experiment: the run's configuration.
        data: the run's data.
        settings: the samplers to compare.
        config: the sampler whose exact likelihood is computed.
        num_samples: samples a setting.
        batch_size: rows of a batch.
        likelihood_sequences: held-out sequences whose likelihood is bounded; 0 for none.
        orders: random orders for each of them.
        split: "valid" or "test": the text that all figures of held-out text are of.
        seed: of everything random here.
        words: known words; None for those of the training split.
        texts: folder for the samples, as `write_texts`, and as much held-out text; None to keep none.
        progress: told of what is done.

    Returns:
        JSON values: "split", "validation", "bounds" (None without likelihood sequences), "data" (figures of held-out
        text, as many tokens as samples have), "samplers" (one entry a setting) and "acceptance" (one for each setting
        of the samplers "plain" and "speculative").

    Raises:
        ValueError: for numbers out of range or a split that is not there, before any work, and as the parts do.
    """
    check_sizes(
        num_samples=num_samples,
        batch_size=batch_size,
        likelihood_sequences=likelihood_sequences,
        orders=orders,
    )
    records = held_out_records(data, split)
    if tokenizer.fingerprint() != data.tokenizer.fingerprint():
        raise ValueError("the data's tokenizer is not the one that the model was trained with")
    validated = validation(model, experiment, records)
    progress(f"{split} split: draft {validated.draft_bits:.3f}, target {validated.target_bits:.3f} bits per token")
    progress(validated.table())

    key, found = jax.random.key(seed), None
    if likelihood_sequences:
        held_out = text.spread_records(records, likelihood_sequences)
        bounds_key = jax.random.fold_in(key, 0)
        found = likelihood.bounds(
            model, tokenizer, held_out, bounds_key, config, num_orders=orders, batch_size=batch_size
        )
        progress(tables.bounds_table(found))

    words = text.training_words(data.train, tokenizer) if words is None else words
    reference = text.spread_records(records, num_samples)
    of_data = {
        "num_sequences": len(reference),
        "num_words": len(words),
        "spelling": text.spelling_accuracy([tokenizer.decode(row) for row in reference], words),
        "unigram_entropy": text.unigram_entropy(reference),
        "bigram_entropy": text.bigram_entropy(reference),
    }
    compared = bench.compare(
        model,
        tokenizer,
        settings,
        jax.random.fold_in(key, 1),
        length=experiment.length,
        num_samples=num_samples,
        batch_size=batch_size,
        words=words,
        progress=progress,
    )
    if texts is not None:
        try:
            write_texts(texts, "held_out", [tokenizer.decode(row) for row in reference])
            for each in compared:
                name = f"{each.row.sampler}_{each.row.setting}"
                write_texts(texts, name, [tokenizer.decode(row) for row in each.tokens])
        except OSError as error:
            # A disk that has filled up meanwhile must not lose the figures, which are not yet printed.
            progress(f"the texts could not all be kept in {texts}: {error.strerror}")
    progress(tables.samplers_table([each.row for each in compared]))
    for each in compared:
        if each.row.sampler == "speculative":
            progress(f"speculative {each.row.setting}\n{tables.acceptance_table(each.along)}")
    return to_json(
        {
            "device": jax.devices()[0].device_kind,
            "seed": seed,
            "split": split,
            "validation": validated.as_dict(),
            "bounds": found,
            "data": of_data,
            "samplers": [each.row for each in compared],
            "acceptance": [
                {"sampler": each.row.sampler, "setting": each.row.setting, **each.along._asdict()}
                for each in compared
                if each.along is not None
            ],
        }
    )


def evaluate_workdir(
    workdir: os.PathLike | str,
    *,
    settings_text: str | None = None,
    samplers: str | None = None,
    sweep: str = "",
    word_list: os.PathLike | str | None = None,
    data_folder: os.PathLike | str | None = None,
    **options,
) -> dict[str, Any]:
    """Evaluates a training run: what `launch/evaluate.py` does.

    Args:
        workdir: of a training run.
        settings_text: settings of "plain" and "speculative", as `settings.parse_settings` reads them; None for those
            of `settings.DEFAULT_SETTINGS`, or none beside `samplers`.
        samplers: names of any samplers, as `settings.sweep_settings` reads them; None for none.
        sweep: what they run through, likewise.
        word_list: path of the known words; None for those of the training text.
        data_folder: where the run's data are now; None for where they were.
        **options: sizes, split, seed and texts, as in `evaluate`.

    Returns:
        As `evaluate`, and "workdir".

    Raises:
        ValueError: for bad input, before any long work.
    """
    words = None if word_list is None else text.read_word_list(word_list)
    model, tokenizer, config = ssmd_jax.load(os.path.expanduser(workdir))
    experiment = ExperimentConfig.from_config_dict(config)
    if settings_text is None and samplers is None:
        settings_text = DEFAULT_SETTINGS
    settings = run_settings(workdir, model, experiment.sampling, settings_text, samplers, sweep)
    check_sizes(**{name: value for name, value in options.items() if name not in ("seed", "split", "texts")})
    if options.get("texts") is not None:
        os.makedirs(os.path.expanduser(options["texts"]), exist_ok=True)
    results = evaluate(
        model,
        tokenizer,
        experiment,
        load_data(experiment, data_folder),
        settings,
        # The bound's recursion is that of rejections; with too few rounds shared noise has another law.
        make_config(experiment.sampling, shared_noise=False),
        words=words,
        progress=say,
        **options,
    )
    return {"workdir": str(workdir), **results}


def file_stem(name: str) -> str:
    """The name of texts as part of a file's name."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def write_texts(folder: os.PathLike | str, name: str, texts: Sequence[str]) -> pathlib.Path:
    """Writes texts where `launch/judge.py` reads them: JSON with "samples".

    Args:
        folder: that is there.
        name: of the texts; symbols that file names do not like become underscores.
        texts: to write.

    Returns:
        The file.
    """
    file = pathlib.Path(os.path.expanduser(folder)) / f"{file_stem(name)}.json"
    file.write_text(json.dumps({"name": name, "samples": list(texts)}), encoding="utf-8")
    return file


def check_output(output: os.PathLike | str) -> None:
    """Refuses a file for results that cannot be written, before the work whose results it is for.

    Raises:
        ValueError: saying why.
    """
    output = pathlib.Path(os.path.expanduser(output))
    if not output.parent.is_dir():
        raise ValueError(f"there is no folder {output.parent} for the output: create it first")
    try:
        is_new = not output.exists()
        # Opened rather than asked for its permissions: they do not know all that may be wrong.
        with open(output, "a", encoding="utf-8"):
            pass
        if is_new:
            output.unlink()
    except OSError as error:
        raise ValueError(f"cannot write the output {output}: {error.strerror}") from None


def write_output(results: dict[str, Any], output: os.PathLike | str) -> None:
    """Writes results as JSON.

    Raises:
        ValueError: where the file cannot be written.
    """
    try:
        with open(os.path.expanduser(output), "w", encoding="utf-8") as file:
            file.write(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write the output {output}: {error.strerror}") from None
