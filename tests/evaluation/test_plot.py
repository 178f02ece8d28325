"""What is drawn are the rows, by sampler and in the order of their NFE."""

import io

import numpy as np
import pytest

from ssmd_jax.evaluation import plot
from ssmd_jax.evaluation.bench import Row
from ssmd_jax.evaluation.statistics import Estimate, to_json

pytest.importorskip("matplotlib", reason="pip install matplotlib")
NAN = float("nan")


def row(sampler, nfe, spelling, error=0.01):
    numbers = dict.fromkeys(Row._fields, 0)
    numbers |= {"sampler": sampler, "nfe": Estimate(nfe, 0.0), "spelling": Estimate(spelling, error)}
    return Row(**numbers)


ROWS = [row("plain", 22.0, 0.7), row("plain", 8.0, 0.5, NAN), row("speculative", 9.0, 0.7), row("plain", 11.0, 0.6)]


@pytest.mark.parametrize("form", [list, to_json])
def test_rows_become_lines(form):
    figure = plot.quality_against_nfe({"one": form(ROWS), "two": form(ROWS[:1])})
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("one", "two")
    plain, speculative = (container.lines[0].get_xydata() for container in first.containers)
    np.testing.assert_allclose(plain, [(8.0, 0.5), (11.0, 0.6), (22.0, 0.7)])
    np.testing.assert_allclose(speculative, [(9.0, 0.7)])
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["plain", "speculative"]
    # two standard errors up and down, none where there is none
    ends = [segment[:, 1] for segment in first.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [(0.5, 0.5), (0.58, 0.62), (0.68, 0.72)])
    figure.savefig(io.BytesIO(), format="png")


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="nothing to plot"):
        plot.quality_against_nfe({})
    with pytest.raises(ValueError, match="no row of 'mine' has a spelling accuracy"):
        plot.quality_against_nfe({"mine": [row("plain", 8.0, NAN)]})


def results(rows):
    """Of `report.evaluate`, as far as they are drawn."""
    return to_json({"device": "cpu", "data": {"unigram_entropy": 2.8}, "samplers": rows})


def test_samplers_become_curves(tmp_path):
    """One line for each sampler with its fixed arguments, in three panels; unjudged rows still show their entropy."""
    settings = ["steps=8", "steps=16", "block=4 steps=8", "steps=8"]
    rows = [
        row(name, nfe, spelling)._replace(setting=setting, seconds_per_sample=nfe / 10, unigram_entropy=2.7)
        for name, nfe, spelling, setting in zip(
            ["llada", "llada", "llada", "eb"], [8.0, 16.0, 9.0, 7.0], [0.4, 0.5, 0.6, NAN], settings, strict=True
        )
    ]
    assert [plot.curve_name(each) for each in to_json(rows)] == ["llada", "llada", "llada block=4", "eb"]
    names = {
        "best12": "speculative best windows",
        "0.04 x 8 tie_first": "speculative tie_first",
        "best12 shared_noise": "speculative best windows shared_noise",
        "0.1 x 8": "speculative",
    }
    assert [plot.curve_name({"sampler": "speculative", "setting": each}) for each in names] == list(names.values())
    for ending in ("png", "svg"):
        path = tmp_path / f"samplers.{ending}"
        plot.check(path)
        plot.plot_samplers(results(rows), path)
        assert path.stat().st_size > 1000
    assert "llada block=4" in plot.samplers_figure(results(rows)).axes[2].get_legend().get_texts()[1].get_text()


def test_pictures_that_cannot_be_written(tmp_path):
    for path, words in ((tmp_path / "a.txt", "ending"), (tmp_path / "none" / "a.png", "no folder")):
        with pytest.raises(ValueError, match=words):
            plot.check(path)
