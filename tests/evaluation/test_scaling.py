"""The scaling study: what it measures, that one failure costs one row, and its figures on CPU devices."""

import dataclasses
import functools
import json
import math
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import openwebtext
from ssmd_jax.evaluation.scaling import lab, programs, settings, study, tables
from ssmd_jax.evaluation.scaling.settings import Layout, layouts
from ssmd_jax.model.hybrid import HybridTransformer
from ssmd_jax.training import sharding
from ssmd_jax.training.config import ExperimentConfig
from ssmd_jax.training.programs import make_programs
from ssmd_jax.training.state import abstract_params, count_params, shardings_of


def experiment():
    return ExperimentConfig.from_config_dict(openwebtext.get_config())


def made(**fields):
    numbers = {"num_tokens": 50_257, "loss_batch": 32, "loss_steps": 5, "runs": 1, "max_seconds": 1.0}
    return settings.make_settings(experiment(), **(numbers | fields))


def test_layouts():
    assert layouts(1) == (Layout(1, 1),)
    assert layouts(2) == (Layout(2, 1), Layout(1, 2))
    assert layouts(8) == (Layout(8, 1), Layout(1, 8), Layout(2, 4))
    assert [layout.name for layout in layouts(4)] == ["data 4", "fsdp 4", "data 2 x fsdp 2"]
    assert dict(Layout(2, 2).mesh().shape) == {"data": 2, "fsdp": 2, "tensor": 1}


def test_models_and_devices():
    chosen = made()
    assert chosen.devices == (1, 2, 4, 8) and chosen.parts == settings.PARTS
    counts = [count_params(abstract_params(HybridTransformer(chosen.network(model)))) for model in chosen.models]
    assert counts[0] == 164_583_168 and math.isclose(counts[1], 1e9, rel_tol=0.03)
    first, second = chosen.models
    assert (first.config.width, first.config.num_heads, first.config.dropout) == (768, 12, 0.1)
    assert chosen.smallest() == first and chosen.checkpoint_model == "150m"
    assert (second.batch_size, second.sample_size) == (8, 8)
    trained = chosen.experiment(second, Layout(2, 4), 64)
    assert (trained.mesh.data, trained.mesh.fsdp, trained.training.batch_size) == (2, 4, 64)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"models": ["7b"]}, "models must be among 150m, 1b, got 7b"),
        ({"parts": ["speed"]}, "parts must be among"),
        ({"devices": ["3"]}, "devices must be powers of two up to the 8 that are here, got 3"),
        ({"devices": ["16"]}, "got 16"),
        ({"devices": ["two"]}, "devices must be whole numbers, got two"),
        ({"batch_sizes": ["4"]}, "batch_sizes must be one number for each of the 2 models, got 1"),
        ({"sample_sizes": ["4", "0"]}, "sample_sizes must be at least 1"),
        ({"loss_batch": 4}, "loss_batch 4 is not divisible by 8 devices"),
        ({"checkpoint_model": "1b", "models": ["150m"]}, "checkpoint_model must be among 150m"),
        ({"runs": 0}, "runs must be a whole number of at least 1"),
        ({"budget_seconds": 0.0}, "budget_seconds must be positive"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(fields, named):
    with pytest.raises(ValueError, match=named):
        made(**fields)


def test_every_program_is_compiled_once():
    """Training and the comparison of losses share those of equal batch."""
    chosen = made(models=["150m"], devices=[1, 4], tiny=True, loss_batch=16)
    names = list(programs.plan(chosen))
    steps = [name[2:] for name in names if name[0] == programs.STEP]
    assert steps == [(Layout(1, 1), 4), (Layout(1, 1), 16), *((layout, 16) for layout in layouts(4))]
    assert [name[0] for name in names[5:]] == [programs.DRAW] * 2 + [programs.INIT] * 4 + [programs.WEIGHTS] * 2
    saved = programs.plan(dataclasses.replace(chosen, parts=(settings.CHECKPOINT,)))
    assert list(saved) == [(programs.STEP, "150m", Layout(1, 4), 16), (programs.INIT, "150m", Layout(1, 4))]


def test_programs_that_fail_cost_nothing_but_themselves():
    said, names = [], [("sampler", "150m", Layout(n, 1)) for n in (1, 2, 4)]

    def refuse():
        raise NotImplementedError("no such\nkernel")

    good = programs.Job(lambda: jax.jit(lambda x: x + 1).lower(jnp.ones(3)))
    bad = programs.Job(lambda: types.SimpleNamespace(compile=lambda **_: refuse()))
    compiled = programs.compile_all(
        dict(zip(names, (programs.Job(refuse), good, bad), strict=True)), 2, None, said.append
    )
    assert list(compiled) == names
    untraced, added, uncompiled = compiled.values()
    assert untraced.error == uncompiled.error == "NotImplementedError: no such"
    np.testing.assert_array_equal(added.call(jnp.ones(3)), 2 * np.ones(3))
    assert added.error is None and added.program_bytes >= 24 and added.compile_seconds > 0
    assert len(said) == 3 and "sampler 150m, alone: NotImplementedError: no such" in said
    assert said.count("sampler 150m, data 4: NotImplementedError: no such") == 1


def workbench(**fields):
    return lab.Lab(made(**fields), {}, None, time.perf_counter(), lambda _: None)


def test_cases_that_fail_are_rows():
    bench = workbench()
    row = lambda measure: bench.row("training", bench.settings.models[0], Layout(2, 1), measure)
    assert row(lambda: {"seconds": 1.0})["error"] is None
    failed = row(lambda: next(bench.trainer(bench.settings.models[0], Layout(2, 1), 8)))
    assert (failed["model"], failed["layout"], failed["devices"]) == ("150m", "data 2", 2)
    assert failed["error"].startswith("KeyError") and "seconds" not in failed
    late = workbench(budget_seconds=1e-9)
    assert "are over" in late.row("losses", late.settings.models[0], Layout(1, 1), lambda: {"seconds": 1.0})["error"]


def test_what_does_not_fit_is_refused_before_it_runs(monkeypatch):
    stats = {"bytes_limit": 100, "bytes_in_use": 30}
    device = types.SimpleNamespace(memory_stats=lambda: stats, __str__=lambda: "device")
    mesh = types.SimpleNamespace(local_devices=[device, device])
    monkeypatch.setattr(Layout, "mesh", lambda _: mesh)
    bench = workbench()
    bench.check_memory(Layout(2, 1), 70)
    bench.check_memory(Layout(2, 1), None)
    with pytest.raises(MemoryError, match="GiB are needed"):
        bench.check_memory(Layout(2, 1), 71)
    stats.clear()
    bench.check_memory(Layout(2, 1), 71)


def test_released_arrays_are_gone():
    arrays = [jnp.ones(3), jnp.ones(4)]
    arrays[0].delete()
    lab.release({"both": arrays})
    assert all(array.is_deleted() for array in arrays)


def trivial_plan(plan, chosen):
    """Programs of the right arguments that compile in no time; samplers fail."""
    abstract = {
        layout: make_programs(chosen.experiment(chosen.models[0], layout, 8), layout.mesh(), chosen.num_tokens).abstract
        for layout in chosen.layouts()
    }

    def step(state, tokens_BxD, key):
        mean = jnp.mean(tokens_BxD.astype(jnp.float32))
        return state.replace(step=state.step + 1), {"loss": mean / state.step, "grad_norm": mean}

    def lower(name):
        kind, _, layout, *batch = name
        if kind not in (programs.STEP, programs.INIT):
            raise RuntimeError("out of everything")
        state, key, mesh = abstract[layout], chosen.key(layout), layout.mesh()
        if kind == programs.INIT:
            ones = lambda key: jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), state)
            return jax.jit(ones, out_shardings=shardings_of(state)).lower(key)
        where = sharding.batch_sharding(mesh)
        tokens_BxD = jax.ShapeDtypeStruct((*batch, chosen.config.length), jnp.int32, sharding=where)
        shardings = (shardings_of(state), sharding.replicated(mesh))
        return jax.jit(step, out_shardings=shardings, donate_argnums=0).lower(state, tokens_BxD, key)

    return {name: programs.Job(functools.partial(lower, name)) for name in plan(chosen)}


def studied(folder, said, **fields):
    """A study of the smaller model, and its file's content."""
    numbers = {"loss_batch": 16, "loss_steps": 3, "runs": 2, "max_seconds": 5.0, "tiny": True}
    results = study.study(
        openwebtext.get_config(),
        num_tokens=50_257,
        models=["150m"],
        output=folder / "scaling.json",
        workdir=str(folder),
        say=said.append,
        **numbers,
        **fields,
    )
    assert json.loads((folder / "scaling.json").read_text()) == json.loads(json.dumps(results, allow_nan=False))
    assert [path.name for path in folder.iterdir()] == ["scaling.json"]  # the checkpoint's folder is gone
    return results, {(row["part"], row["layout"]): row for row in results["rows"]}


@pytest.mark.slow
def test_course_of_a_study(tmp_path, monkeypatch):
    """Cases, figures and the file, with programs that do next to nothing; half of the cases fail."""
    monkeypatch.setattr(settings, "TINY_TOKENS", 27)
    monkeypatch.setattr(programs, "plan", functools.partial(trivial_plan, programs.plan))
    said = []
    results, rows = studied(tmp_path, said, devices=["1", "4"])
    names = ["alone", "data 4", "fsdp 4", "data 2 x fsdp 2"]
    assert list(rows) == [
        *((part, name) for part in ("training", "losses") for name in names),
        *(("sampling", name) for name in names[:2]),
        ("checkpoint", "fsdp 4"),
    ]
    for name in names[:2]:
        failed = rows.pop(("sampling", name))
        assert "out of everything" in failed["error"] and failed["efficiency"] is None
    assert all(row["error"] is None for row in rows.values()), said
    assert said[-1].count("failed") == 2 and said[-1].count("out of everything") == 2
    check_figures(results, rows)


@pytest.mark.slow
def test_study(tmp_path):
    """With the programs that users get: losses and samples are those of one device."""
    results, rows = studied(tmp_path, [], devices=["1", "4"])
    assert len(rows) == 11 and all(row["error"] is None for row in rows.values())
    check_figures(results, rows)
    assert rows["training", "fsdp 4"]["program_bytes"] < rows["training", "data 4"]["program_bytes"]
    # The steps change the parameters, or equal losses would say little.
    assert len(set(rows["losses", "alone"]["losses"])) == 3
    alone, shared = rows["sampling", "alone"], rows["sampling", "data 4"]
    assert alone["equal_rows"] == shared["equal_rows"] == alone["efficiency"] == 1.0 and alone["nfe"] > 0
    assert math.isclose(shared["samples_per_second"], 8 / shared["seconds"])
    assert math.isclose(shared["efficiency"], shared["samples_per_second"] / alone["samples_per_second"] / 4)


def check_figures(results, rows):
    assert results["largest_loss_difference"] < 1e-4
    assert results["compile"]["programs"]["train step 150m, fsdp 4, batch 16"]["compile_seconds"] > 0
    alone = rows["training", "alone"]
    for name, devices in (("alone", 1), ("data 4", 4), ("fsdp 4", 4), ("data 2 x fsdp 2", 4)):
        row = rows["training", name]
        assert (row["batch_size"], row["devices"]) == (4 * devices, devices)
        assert math.isclose(row["tokens_per_second"], row["batch_size"] * settings.TINY_LENGTH / row["seconds"])
        assert math.isclose(row["efficiency"], row["tokens_per_second"] / alone["tokens_per_second"] / devices)
        rate = row["device_flops_per_second"]
        assert math.isclose(row["share_of_ceiling"], rate / results["ceilings"]["matmul_flops"])
        if devices > 1:  # the same batch on each
            assert math.isclose(row["loss"], rows["training", "data 4"]["loss"], rel_tol=1e-5)
        losses = rows["losses", name]
        assert len(losses["losses"]) == 3 and losses["compared_with"] == "alone"
        assert losses["largest_difference"] < 1e-4 and losses["largest_gradient_difference"] < 1e-4
    saved = rows["checkpoint", "fsdp 4"]
    assert saved["restore_digests_equal"] and saved["restore_half_digests_equal"] and not saved["warnings"]
    assert (saved["restore_devices"], saved["restore_half_devices"]) == (4, 2)
    assert saved["seconds"] >= saved["seconds_until_training_goes_on"] > 0
    # Parameters, average and two moments in float32, and a few counts.
    assert 0 <= saved["state_bytes"] - 16 * results["num_params"]["150m"] < 64
    assert saved["disk_bytes"] > 0


def test_rows_that_fail_have_their_sentence_below_the_table():
    row = {"part": "training", "model": "1b", "layout": "data 4", "devices": 4, "error": "MemoryError: no"}
    text = tables.tables([row])
    assert text.splitlines()[0] == "training" and text.endswith("1b, data 4: MemoryError: no")
