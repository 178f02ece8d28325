"""Resuming, refusing, stopping: the training loop as a user meets it."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import ssmd_jax
from ssmd_jax.sampling.interface import SpeculativeModel
from ssmd_jax.training import checkpoint, loading, loop, meter, programs, state, step, workdir
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]
# Compiles in a third of the time; every process of a comparison gets the same.
ENVIRONMENT = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
FIELDS = {"training__checkpoint_every": 4, "training__eval_every": 4}


def run_processes(*runs):
    """Trains one run after another in one new process; their summaries."""
    arguments = [json.dumps({"workdir": str(workdir), "fields": FIELDS | fields}) for workdir, fields in runs]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.run_tiny", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def metrics(workdir, kind="train"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    is_time = lambda name: name == "tokens_per_second" or name.endswith("_seconds")
    return [{k: v for k, v in line.items() if not is_time(k)} for line in lines if line["kind"] == kind]


def saved(workdir, step):
    """All arrays of a checkpoint."""
    with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
        parts = checkpoints._checkpointer.load_checkpointables(step, None)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(parts)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run `a`: 8 steps at once. Run `b`: 4 steps, and 4 more in a new process."""
    a, b = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    (first, half), _ = run_processes((a, {}), (b, {"training__stop_step": 4}))
    (resumed,), messages = run_processes((b, {}))
    return {"a": a, "b": b, "first": first, "half": half, "resumed": resumed, "messages": messages}


def test_resumed_run_is_the_same_bit_for_bit(runs):
    assert (runs["half"]["step"], runs["half"]["finished"]) == (4, False)
    assert (runs["resumed"]["step"], runs["resumed"]["finished"], runs["resumed"]["resumed_from"]) == (8, True, 4)
    assert "resumed from step 4" in runs["messages"]
    one, two = saved(runs["a"], 8), saved(runs["b"], 8)
    assert any("opt_state" in name for name in one) and any("ema_params" in name for name in one)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    # The losses tell that data, orders and masks were the same too.
    assert [line["step"] for line in metrics(runs["a"])] == list(range(1, 9))
    assert metrics(runs["a"]) == metrics(runs["b"])
    assert metrics(runs["a"], "valid") == metrics(runs["b"], "valid")
    losses = [line["loss"] for line in metrics(runs["a"])]
    assert losses[-1] < losses[0] and len(set(losses)) == 8


def test_summary_and_table(runs):
    assert runs["first"]["valid_draft_bits"] == pytest.approx(runs["first"]["valid_draft_loss"] / np.log(2))
    cells = runs["first"]["valid_target_bits_by_distance"]
    assert len(cells) == 8 and cells[-1] is None and all(cell > 0 for cell in cells[:5])
    assert "distance k-i" in runs["messages"]


def test_load_gives_the_average_and_the_protocol(runs):
    model, tokenizer, config = ssmd_jax.load(runs["a"])
    assert all(hasattr(model, name) for name in dir(SpeculativeModel) if not name.startswith("_"))
    assert tokenizer.num_tokens == model.num_tokens == 27
    assert config.is_locked and config.length == tiny.LENGTH and config.data.tokenizer == "text8"
    arrays = saved(runs["a"], 8)
    head = next(value for name, value in arrays.items() if "ema_params" in name and "head" in name)
    np.testing.assert_array_equal(model.params["head"], head)
    with pytest.raises(ValueError, match="no workdir"):
        ssmd_jax.load(runs["a"].parent / "nothing")


def test_truncated_checkpoint_falls_back(runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs["a"], workdir)
    newest = workdir / "checkpoints" / "8"
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 2_000:
            os.truncate(path, path.stat().st_size // 2)
    (resumed,), messages = run_processes((workdir, {}))
    assert resumed["resumed_from"] == 4 and resumed["step"] == 8
    assert f"{newest} cannot be read" in messages
    assert (workdir / "checkpoints_damaged" / "8").is_dir()
    # and the steps that came again are the same
    one, two = saved(runs["a"], 8), saved(workdir, 8)
    assert all((one[name] == two[name]).all() for name in one)
    assert metrics(runs["a"]) == metrics(workdir)


def test_no_readable_checkpoint_is_one_sentence(runs, tmp_path):
    shutil.copytree(runs["a"], tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2_000:
            os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"none of the checkpoints .* can be read"):
        ssmd_jax.load(tmp_path / "run")


def test_another_config_is_refused_by_name(runs):
    changed = tiny.config_dict(model__width=32, optimizer__learning_rate=0.5, training__log_every=3)
    with pytest.raises(ValueError, match="another config") as error:
        loop.train(changed, runs["a"], tiny.data())
    assert "model.width: 16 -> 32" in str(error.value) and "optimizer.learning_rate" in str(error.value)
    assert "log_every" not in str(error.value)


def test_another_tokenizer_is_refused(runs):
    class Other:
        num_tokens = 27

        def fingerprint(self):
            return "other"

    data = tiny.data()
    other = type(data)(data.train, data.valid, None, Other())
    with pytest.raises(ValueError, match="tokenizer does not match"):
        loop.train(tiny.config_dict(**FIELDS), runs["a"], other)


@pytest.mark.slow
def test_other_data_are_refused_and_moved_ones_accepted(tmp_path):
    """The same words in another file go on; other words of the same size, or more of them, do not."""
    (tmp_path / "old").mkdir()
    (tmp_path / "moved").mkdir()
    documents = [f"{word} sat on the mat and the dog ran off again " * 8 for word in ("cat", "cow", "hen", "pig") * 10]
    fields = FIELDS | {"training__eval_every": 0, "data__cache_dir": str(tmp_path / "cache")}
    train = lambda name, stop: loop.train(
        tiny.config_dict(data__source=str(tmp_path / name), training__stop_step=stop, **fields), tmp_path / "run"
    )
    (tmp_path / "old" / "text.txt").write_text("\n\f\n".join(documents))
    train("old/text.txt", 1)
    shutil.move(tmp_path / "old" / "text.txt", tmp_path / "moved" / "text.txt")
    assert train("moved/text.txt", 2)["resumed_from"] == 1
    for changed in ([text.replace("mat", "rug") for text in documents], documents * 2):
        (tmp_path / "changed.txt").write_text("\n\f\n".join(changed))
        with pytest.raises(ValueError, match=r"data are not those .* train: [\d,]+ tokens -> [\d,]+ tokens") as error:
            train("changed.txt", 3)
        assert "\n" not in str(error.value)
    assert train("moved/text.txt", 3)["resumed_from"] == 2


def test_hash_of_tokens_reads_the_numbers_and_a_bounded_share(monkeypatch):
    monkeypatch.setattr(workdir, "HASHED_BLOCK", 4)
    monkeypatch.setattr(workdir, "HASHED_BLOCKS", 3)
    tokens = np.arange(50, dtype=np.uint8)
    assert workdir.tokens_hash(tokens) == workdir.tokens_hash(tokens.astype(np.int32))
    seen = [
        i
        for i in range(50)
        if workdir.tokens_hash(np.where(np.arange(50) == i, 99, tokens)) != workdir.tokens_hash(tokens)
    ]
    assert seen == [0, 1, 2, 3, 24, 25, 26, 27, 48, 49]
    short = tokens[:11]
    assert all(
        workdir.tokens_hash(np.where(np.arange(11) == i, 99, short)) != workdir.tokens_hash(short) for i in range(11)
    )


def test_batch_and_mesh_must_fit(tmp_path):
    for fields, message in (
        ({"mesh__data": 3}, "training.batch_size 8 is not divisible by the 3 devices"),
        ({"mesh__data": 2, "training__accumulation": 8}, "multiple of 16"),
        ({"mesh__data": 16}, "needs 16 devices"),
        ({"mesh__tensor": 4}, "attention/out .* not divisible by mesh.tensor"),
        ({"model__attention": "cudnn", "model__dtype": "bfloat16"}, "needs an NVIDIA GPU"),
        ({"training__eval_batch_size": 64}, "a batch of 64 is larger than its split"),
        ({"training__batch_size": 128, "training__eval_batch_size": 8}, "a batch of 128 is larger than its split"),
        ({"training__init_from": str(tmp_path / "nothing")}, "no workdir of a training run"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(tiny.config_dict(**fields), tmp_path / "run", tiny.data())
    assert not (tmp_path / "run").exists()


def test_init_from_a_model_of_another_shape_is_refused_before_anything_is_written(runs, tmp_path):
    config = tiny.config_dict(training__init_from=str(runs["a"]), model__width=8)
    with pytest.raises(ValueError, match="parameters of other shapes"):
        loop.train(config, tmp_path / "run", tiny.data())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_state_of_an_update_that_is_not_finite_is_not_saved(tmp_path):
    """Loss and gradient of the first step are good, its update is not."""
    fields = {"optimizer__learning_rate": 1e39, "optimizer__warmup_steps": 0, "training__checkpoint_every": 1}
    with pytest.raises(loop.NonFiniteLossError, match=r"at step 1 .* there is no checkpoint yet"):
        loop.train(tiny.config_dict(**fields), tmp_path, tiny.data())
    assert not checkpoint.has_checkpoints(tmp_path)


@pytest.mark.slow
def test_the_advice_after_a_loss_that_is_not_finite_works(tmp_path, monkeypatch):
    def with_bad_fourth_step(*args, **kwargs):
        plain_step = step.make_train_step(*args, **kwargs)

        def train_step(state, tokens, key):
            after, metrics = plain_step(state, tokens, key)
            return after, metrics | {"finite": metrics["finite"] & (state.step != 3)}

        return train_step

    old, new = tmp_path / "old", tmp_path / "new"
    fields = {"training__checkpoint_every": 1, "training__num_steps": 5}
    with monkeypatch.context() as patched, pytest.raises(loop.NonFiniteLossError, match="at step 4") as error:
        patched.setattr(programs, "make_train_step", with_bad_fourth_step)
        loop.train(tiny.config_dict(**fields), old, tiny.data())
    message = str(error.value)
    assert "in a new workdir" in message and "lower optimizer.learning_rate" in message
    assert (
        f"training.init_from={old} starts" in message
        and "training.nonfinite=skip" in message
        and str(old / "checkpoints" / "3") in message
    )
    summary = loop.train(
        tiny.config_dict(training__init_from=str(old), optimizer__learning_rate=1e-3, **fields), new, tiny.data()
    )
    assert summary["finished"]


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_and_saves_nothing(tmp_path):
    with pytest.raises(loop.NonFiniteLossError, match="not finite at step") as error:
        loop.train(tiny.config_dict(optimizer__learning_rate=1e30, training__checkpoint_every=1), tmp_path, tiny.data())
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        newest = checkpoints.steps[-1]
    assert str(tmp_path / "checkpoints" / str(newest)) in str(error.value)
    bad = int(str(error.value).split("at step ")[1].split(" ")[0])
    assert newest == bad - 1


@pytest.mark.slow
def test_init_from_takes_the_weights_of_another_run(runs, tmp_path):
    fields = {"training__init_from": str(runs["a"]), "loss__freeze_trunk": True, "training__num_steps": 1}
    run_processes((tmp_path, fields))
    old, new = saved(runs["a"], 8), saved(tmp_path, 1)
    name = next(name for name in new if name.startswith("['params']") and "head" in name)
    np.testing.assert_array_equal(new[name], old[name.replace("['params']", "['ema_params']")])


def test_init_from_a_causal_part_of_another_form_takes_the_trunk(tmp_path, capsys):
    """A release with evidence serves as the trunk of blocks, and the other way about."""
    loop.train(tiny.config_dict(training__num_steps=2), tmp_path / "blocks", tiny.data())
    fields = {"training__init_from": str(tmp_path / "blocks"), "loss__freeze_trunk": True, "training__num_steps": 1}
    loop.train(tiny.config_dict(model__causal_form="evidence", **fields), tmp_path / "evidence", tiny.data())
    assert "its trunk is taken, and the causal part starts fresh" in capsys.readouterr().err
    start, _, _ = loading.load_params(tmp_path / "blocks")
    found, _, _ = loading.load_params(tmp_path / "evidence")
    assert set(start["causal"]) != set(found["causal"])
    jax.tree.map(np.testing.assert_array_equal, state.trunk_of(found), state.trunk_of(start))


def send(number, to=None):
    """A function that sends this process a signal before it does what `to` does."""

    def wrapped(*args, **kwargs):
        os.kill(os.getpid(), number)
        return to(*args, **kwargs)

    return wrapped


@pytest.mark.slow
def test_a_signal_in_the_middle_writes_the_line_of_the_last_steps(tmp_path, monkeypatch):
    sent = []

    def next_batch(self, start):
        for count, batch in enumerate(plain(self, start)):
            if count == 2 and not sent:
                sent.append(os.kill(os.getpid(), signal.SIGTERM))
            yield batch

    plain = loop._Run.train_batches
    monkeypatch.setattr(loop._Run, "train_batches", next_batch)
    config = tiny.config_dict(training__log_every=100, training__eval_every=3)
    summary = loop.train(config, tmp_path, tiny.data())
    assert (summary["step"], summary["stopped_by"], summary["finished"]) == (3, "SIGTERM", False)
    (line,) = metrics(tmp_path)
    assert line["step"] == 3 and line["loss"] == summary["train_loss"]
    assert "valid_draft_bits" in summary and summary["valid_draft_bits"] is None
    again = loop.train(config, tmp_path, tiny.data())
    assert (again["resumed_from"], again["finished"]) == (3, True)
    assert summary.keys() == again.keys()
    # The validation that was due when the signal came.
    assert [line["step"] for line in metrics(tmp_path, "valid")] == [3, 6, 8]
    assert [line["step"] for line in metrics(tmp_path)] == [3, 8]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["validation", "last save"])
def test_a_signal_at_the_very_end_counts(tmp_path, monkeypatch, where):
    config = tiny.config_dict(training__num_steps=2)
    owner, name = {"validation": (loop._Run, "validate"), "last save": (checkpoint.Checkpoints, "close")}[where]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        closed = []
        plain_close = checkpoint.Checkpoints.close
        patched.setattr(checkpoint.Checkpoints, "close", lambda self: (plain_close(self), closed.append(True)))
        patched.setattr(owner, name, send(signal.SIGINT, getattr(owner, name)))
        loop.train(config, tmp_path, tiny.data())
    assert closed and len(metrics(tmp_path, "valid")) == 1
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, send(signal.SIGTERM, getattr(owner, name)))
        summary = loop.train(config, tmp_path, tiny.data())
    assert (summary["stopped_by"], summary["finished"], summary["resumed_from"]) == ("SIGTERM", True, 2)
    # What was finished and is run again is validated, and writes no second line.
    assert summary["valid_draft_bits"] > 0 and len(metrics(tmp_path, "valid")) == 1


@pytest.mark.slow
def test_tokens_per_second_leave_the_first_step_out(tmp_path, monkeypatch):
    """The first step compiles: here it takes 1,000 seconds, and every other one 1."""
    clock = [0.0]
    monkeypatch.setattr(meter, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(*args, **kwargs):
        plain = jax.device_get(*args, **kwargs)
        clock[0] += 1.0 if clock[0] else 1000.0
        return plain

    monkeypatch.setattr(meter, "jax", types.SimpleNamespace(**{**vars(jax), "device_get": slow}))
    config = tiny.config_dict(training__log_every=2, training__num_steps=4)
    summary = loop.train(config, tmp_path, tiny.data())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    assert rates == [8 * tiny.LENGTH, 8 * tiny.LENGTH]
    assert summary["tokens_per_second"] == rates[-1]


@pytest.mark.slow
def test_metrics_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch):
    def full(self, step, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop.MetricWriter, "write", full)
    with pytest.raises(
        OSError, match=r"cannot be written \(No space left on device\); there is no checkpoint yet: free"
    ):
        loop.train(tiny.config_dict(training__num_steps=1), tmp_path, tiny.data())


def with_bad_batch(monkeypatch, position):
    """Replaces one batch of the stream by zeros."""
    plain = loop._Run.train_batches

    def train_batches(self, start):
        for number, batch in enumerate(plain(self, start), start):
            yield batch * 0 if number == position else batch

    monkeypatch.setattr(loop._Run, "train_batches", train_batches)


def with_loss_of_zeros(monkeypatch, factor):
    """Multiplies the loss of a batch of zeros."""
    plain = step.loss_fn

    def loss_fn(params, network, tokens, *args):
        loss, terms = plain(params, network, tokens, *args)
        return loss * jax.numpy.where(jax.numpy.all(tokens == 0), factor, 1.0), terms

    monkeypatch.setattr(step, "loss_fn", loss_fn)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    with_bad_batch(monkeypatch, 3)
    with_loss_of_zeros(monkeypatch, np.nan)
    fields = {"training__nonfinite": "skip", "training__num_steps": 6, "training__log_every": 2}
    summary = loop.train(tiny.config_dict(**fields, training__checkpoint_every=3), tmp_path, tiny.data())
    assert (summary["finished"], summary["skipped_steps"]) == (True, 1)
    assert [line["skipped_steps"] for line in metrics(tmp_path)] == [0, 1, 0]
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path))
    # A run that may not skip says how to go on, and does so.
    stop = FIELDS | {"training__max_skips": 0}
    with pytest.raises(loop.NonFiniteLossError, match=r"1 steps in a row were skipped up to step 4, more than"):
        loop.train(tiny.config_dict(**fields | stop), tmp_path / "stop", tiny.data())


@pytest.mark.slow
def test_a_loss_spike_goes_back_and_leaves_its_batches_out(tmp_path, monkeypatch):
    """Killed and resumed after it, the run goes on with the same batches."""
    with_bad_batch(monkeypatch, 9)
    with_loss_of_zeros(monkeypatch, 100.0)
    fields = {"training__spike_factor": 3.0, "training__num_steps": 14, "training__checkpoint_every": 2}
    train = lambda name, **more: loop.train(tiny.config_dict(**fields, **more), tmp_path / name, tiny.data())
    summary = train("one")
    assert (summary["finished"], summary["rollbacks"], summary["step"]) == (True, 1, 14)
    (line,) = metrics(tmp_path / "one", "rollback")
    assert (line["step"], line["to_step"], line["data_offset"]) == (10, 8, 2)
    assert [line["step"] for line in metrics(tmp_path / "one")] == list(range(1, 15))
    assert train("two", training__stop_step=11)["rollbacks"] == 1
    assert train("two")["resumed_from"] == 11
    assert metrics(tmp_path / "two") == metrics(tmp_path / "one")
    with pytest.raises(loop.LossSpikeError, match=r"once more after 0 rollbacks .* checkpoint is .*8, and"):
        train("three", training__spike_rollbacks=0)


@pytest.mark.slow
def test_samples_profile_and_best_checkpoint(tmp_path):
    fields = {"training__sample_every": 2, "training__keep_best": 1, "training__keep_last": 1, "mesh__fsdp": 2}
    config = tiny.config_dict(**FIELDS, **fields, sampling__window="full", sampling__verify_rounds=2)
    summary = loop.train(config, tmp_path, tiny.data(), profile_steps=(3, 4))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    texts = (tmp_path / "samples.txt").read_text().split("===== step ")
    assert [text.split("\n")[0] for text in texts[1:]] == ["2", "4", "6", "8"]
    assert all(len(text.split("\n")[1]) == tiny.LENGTH for text in texts[1:])
    assert summary["rollbacks"] == summary["skipped_steps"] == 0 and summary["compute_seconds"] > 0
    assert summary["checkpoint_seconds"] > 0 and summary["validation_seconds"] > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"compute_seconds", "data_seconds", "checkpoint_seconds"} <= line.keys() for line in lines[1:3])
