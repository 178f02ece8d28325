"""Resuming, refusing, stopping: the training loop as a user meets it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import ssmd_jax
from ssmd_jax.sampling.interface import SpeculativeModel
from ssmd_jax.training import checkpoint, loop
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
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines if line["kind"] == kind]


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
    with pytest.raises(ValueError, match="no released checkpoint"):
        ssmd_jax.load()
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


def test_batch_and_mesh_must_fit(tmp_path):
    for fields, message in (
        ({"mesh__data": 3}, "training.batch_size 8 is not divisible by the 3 devices"),
        ({"mesh__data": 2, "training__accumulation": 8}, "multiple of 16"),
        ({"mesh__data": 16}, "needs 16 devices"),
        ({"mesh__tensor": 4}, "attention/out .* not divisible by mesh.tensor"),
        ({"model__attention": "cudnn", "model__dtype": "bfloat16"}, "needs an NVIDIA GPU"),
        ({"training__eval_batch_size": 64}, "larger than its split"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.train(tiny.config_dict(**fields), tmp_path / "run", tiny.data())
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_stops_and_saves_nothing(tmp_path):
    with pytest.raises(loop.NonFiniteLossError, match="not finite at step") as error:
        loop.train(tiny.config_dict(optimizer__learning_rate=1e30, training__checkpoint_every=1), tmp_path, tiny.data())
    with checkpoint.Checkpoints(tmp_path, read_only=True) as checkpoints:
        newest = checkpoints.steps[-1]
    assert str(tmp_path / "checkpoints" / str(newest)) in str(error.value)
    bad = int(str(error.value).split("at step ")[1].split(" ")[0])
    assert newest == bad - 1


def test_init_from_takes_the_weights_of_another_run(runs, tmp_path):
    fields = {"training__init_from": str(runs["a"]), "loss__freeze_trunk": True, "training__num_steps": 1}
    run_processes((tmp_path, fields))
    old, new = saved(runs["a"], 8), saved(tmp_path, 1)
    name = next(name for name in new if name.startswith("['params']") and "head" in name)
    np.testing.assert_array_equal(new[name], old[name.replace("['params']", "['ema_params']")])
