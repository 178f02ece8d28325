"""`launch/judge_proteins.py` as its users run it, on proteins that `launch/sample.py` has drawn."""

import pytest

from ssmd_jax.evaluation import report
from ssmd_jax.evaluation.protein_tools import write_fasta
from ssmd_jax.training import loop
from tests.evaluation.test_proteins import draw
from tests.launch import programs
from tests.training.test_proteins import config, data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    loop.train(config(training__num_steps=1, training__ema_decay=0.0), folder / "run", data())
    for seed, name in enumerate(("natural", "reference")):
        write_fasta(folder / f"{name}.fasta", draw(8, seed))
    return folder


@pytest.mark.slow
def test_drawn_proteins_are_judged(folder):
    samples = f"--fasta={folder / 'samples.fasta'}"
    (drawn,) = programs.run("sample", [[f"--workdir={folder / 'run'}", samples, "--num_samples=3", "--window=full"]])
    assert drawn[0] == 0, drawn
    texts = programs.last_json(drawn[1])["samples"]
    files = [f"--{name}={folder / name}.fasta" for name in ("samples", "natural", "reference")]
    judged, missing, empty, alone = programs.run(
        "judge_proteins",
        [
            [*files, f"--workdir={folder / 'run'}", "--positions=2"],
            [*files, "--mmseqs=nothing"],
            [files[0], f"--natural={folder / 'none.fasta'}", files[2]],
            files[1:],
        ],
    )
    assert judged[0] == 0, judged
    sets = programs.last_json(judged[1])["sets"]
    assert [one["num_sequences"] for one in sets] == [3, 3, 3]
    assert sets[0]["mean_length"] == pytest.approx(sum(map(len, texts)) / 3)
    assert all(one["pseudo_perplexity"]["value"] > 1 for one in sets) and "pseudo perplexity" in judged[2]
    programs.check_refused(missing, "there is no program nothing")
    programs.check_refused(empty, "none.fasta")
    programs.check_refused(alone, "samples")


def test_programs_for_text_refuse_proteins():
    with pytest.raises(ValueError, match=r"launch/judge_proteins.py"):
        report.held_out_records(data(), "valid")
