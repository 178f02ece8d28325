"""`launch/compile_check.py`, as its users run it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.launch import programs

TINY = [
    "--config=configs/quickstart.py",
    "--config.length=16",
    "--config.model.width=16",
    "--config.model.num_heads=2",
    "--config.model.n_noncausal=2",
    "--config.model.unroll=1",
    "--config.training.batch_size=8",
    "--config.mesh.data=1",
]


@pytest.mark.slow
def test_local():
    status, out, err = programs.run("compile_check", [[*TINY, "--topology=local", "--sample_batch=4"]])[0]
    assert status == 0 and len(out.splitlines()) == 1, err
    result = programs.last_json(out)
    # Nobody says how much memory a CPU may use.
    assert (result["topology"], result["capacity"], result["fits"], result["reason"]) == ("local", None, None, None)
    assert result["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1}
    state, by_name = result["state"], result["programs"]
    assert state["params"] == state["ema_params"] == 4 * result["num_params"]
    assert list(by_name) == ["train", "validation", "sampler"]
    train, validation, sampler = by_name.values()
    assert train["memory"]["arguments"] > sum(state.values())
    assert validation["memory"]["resident"] == state["params"] + state["opt_state"] + 4
    assert sampler["batch_size"] == 4 and sampler["memory"]["resident"] == 0
    for one in by_name.values():
        assert one["collectives"] == [] and one["flops"] > 0 and one["seconds"]["bound"] is None
        memory = one["memory"]
        assert memory["total"] == sum(value for name, value in memory.items() if name != "total") > 0
    assert "GiB activations and scratch" in err


def test_bad_input_is_one_sentence():
    lines = [["--config=configs/openwebtext.py"], ["--topology=local"], ["--config=configs/none.py"]]
    for outcome, named in zip(
        programs.run("compile_check", lines), ["--num_tokens", "--config", "configs/none.py"], strict=True
    ):
        programs.check_refused(outcome, named)


def check_for_tpu(*flags):
    """A process of its own: the topology must be asked for before jax uses any device."""
    command = [sys.executable, "-m", "launch.compile_check", *flags]
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    return subprocess.run(command, cwd=programs.ROOT, env=environment, capture_output=True, text=True, timeout=800)


def test_without_the_compiler_for_tpus(monkeypatch, tmp_path):
    # A package of that name that is not to be found.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'libtpu' else find(name, *rest)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = check_for_tpu(*TINY, "--topology=v5e:4x4")
    programs.check_refused((done.returncode, done.stdout, done.stderr), 'pip install "jax[tpu]"')


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='needs the compiler for TPUs: pip install "jax[tpu]"'
)


@needs_libtpu
def test_a_tpu_topology_that_does_not_exist():
    done = check_for_tpu(*TINY, "--topology=v9:4x4")
    programs.check_refused((done.returncode, done.stdout, done.stderr), "v9:4x4 does not exist")


@needs_libtpu
@pytest.mark.slow
def test_openwebtext_on_sixteen_chips():
    flags = ["--config=configs/openwebtext.py", "--num_tokens=50257", "--topology=v5e:4x4"]
    done = check_for_tpu(*flags, "--config.model.remat=True")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["fits"] and result["devices"] == 16 and result["num_params"] > 164e6
    train, validation, sampler = result["programs"].values()
    assert 2 * 2**30 < train["memory"]["temporaries"] < 6 * 2**30
    (reduce,) = train["collectives"]
    # Every gradient is added up over the devices, in bfloat16 or float32.
    assert 2 * result["num_params"] <= reduce["num_bytes"] <= 4 * result["num_params"]
    assert sampler["collectives"] == [] and train["seconds"]["bound"] > validation["seconds"]["bound"] > 0
    # 128 sequences a device, and no activation is recomputed.
    done = check_for_tpu(*flags, "--programs=train", "--batch_size=2048")
    assert done.stderr.splitlines()[-1].startswith("error: v5e:4x4: train at batch 2048 does not fit"), done.stderr
    assert done.returncode == 1 and not json.loads(done.stdout)["fits"]
