"""`launch/judge_proteins.py` as its users run it, on proteins that `launch/sample.py` has drawn."""

import pytest

from ssmd_jax.data import sources
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


@pytest.mark.slow
def test_sets_of_many_settings_are_drawn_and_judged(folder):
    """Whole proteins, and scaffolds around a stretch of natural ones; the judge takes all sets at once."""
    run, natural = f"--workdir={folder / 'run'}", folder / "natural.fasta"
    common = [run, "--num_samples=4", "--batch_size=3", "--settings=plain:0.2,speculative:0.2:2"]
    scaffolds = [*common, f"--output={folder / 'filled'}", f"--scaffolds={folder / 'short.fasta'}", "--keep=0.4"]
    write_fasta(folder / "short.fasta", draw(9, 5, 8, 20))
    whole, filled, few, share = programs.run(
        "draw_proteins",
        [
            [*common, f"--output={folder / 'drawn'}", "--samplers=p2", "--sweep=steps=2"],
            scaffolds,
            [*scaffolds, "--num_samples=50"],
            [*scaffolds, "--keep=1"],
        ],
    )
    assert whole[0] == 0 and filled[0] == 0, (whole, filled)
    programs.check_refused(few, "fewer than num_samples")
    programs.check_refused(share, "keep must lie between")
    index = programs.last_json(whole[1])
    assert [one["sampler"] for one in index["sets"]] == ["plain", "speculative", "p2"] and index["natural"] is None
    index = programs.last_json(filled[1])
    assert all(0 <= one["recovery"]["value"] < 1 for one in index["sets"])
    natural_ones = [s for _, s in sources.read_sequences(str(folder / "filled" / "natural.fasta"))]
    for one in index["sets"]:
        drawn = [s for _, s in sources.read_sequences(str(folder / "filled" / one["file"]))]
        assert list(map(len, drawn)) == list(map(len, natural_ones))
        kept = [longest_common_stretch(a, b) for a, b in zip(drawn, natural_ones, strict=True)]
        assert all(size >= round(0.4 * len(s)) for size, s in zip(kept, natural_ones, strict=True))
    files = ",".join(str(folder / "filled" / one["file"]) for one in index["sets"])
    (judged,) = programs.run(
        "judge_proteins", [[f"--samples={files}", f"--natural={natural}", f"--reference={folder / 'reference.fasta'}"]]
    )
    names = [one["name"] for one in programs.last_json(judged[1])["sets"]]
    assert names == [one["file"].removesuffix(".fasta") for one in index["sets"]] + ["natural", "shuffled"]


def longest_common_stretch(one, other):
    """Letters of the longest run of places at which two sequences agree."""
    runs = "".join(" x"[a == b] for a, b in zip(one, other, strict=True)).split()
    return max(map(len, runs), default=0)


def test_programs_for_text_refuse_proteins():
    with pytest.raises(ValueError, match=r"launch/judge_proteins.py"):
        report.held_out_records(data(), "valid")
