"""Settings as users write them."""

import jax
import numpy as np
import pytest

from ssmd_jax.diffusion.window import ConstantWindow, CosineWindow, FullWindow, LinearWindow
from ssmd_jax.evaluation import settings, tuning
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.recommend import recommend
from ssmd_jax.training.config import SamplingConfig
from tests.tabular import tabular_model

SECTION = SamplingConfig(delta_tau=0.1, verify_rounds=5, temperature=0.9, order="entropy", tie_first=True)


def test_section_then_flags():
    kept = {"temperature": 0.9, "order": "entropy", "tie_first": True}
    assert settings.make_config(SECTION) == SpeculativeConfig(CosineWindow(0.1), 5, **kept)
    assert settings.make_config(SECTION, window="full", verify_rounds=2) == SpeculativeConfig(FullWindow(), 2, **kept)
    assert settings.make_config(SECTION, window="7").window == ConstantWindow(7)
    flags = {"temperature": 0.0, "tie_first": False, "order": "random", "budget_nfe": 9.0, "top_p": 0.5}
    got = settings.make_config(SECTION, delta_tau=0.2, draft_temperature=1.5, **flags)
    assert got == SpeculativeConfig(CosineWindow(0.2), 5, draft_temperature=1.5, **flags)
    full = SamplingConfig(window="full")
    assert settings.make_config(full).window == FullWindow()
    assert settings.make_config(full, delta_tau=0.3).window == CosineWindow(0.3)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"window": "0"}, "size"),
        ({"window": "-3"}, "size"),
        ({"window": "wide"}, "window"),
        ({"window": ""}, "window"),
        ({"window": "1..x"}, "window"),
        ({"window": "0..4"}, "first"),
        ({"window": "full", "delta_tau": 0.1}, "delta_tau"),
        ({"delta_tau": 0.0}, "delta_tau"),
        ({"delta_tau": -0.1}, "delta_tau"),
        ({"verify_rounds": 0}, "verify_rounds"),
        ({"verify_rounds": -1}, "verify_rounds"),
        ({"budget_nfe": 0.0}, "budget_nfe"),
        ({"budget_nfe": -2.0}, "budget_nfe"),
        ({"order": "backwards"}, "order"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_flags_are_named(flags, named):
    with pytest.raises(ValueError, match=named):
        settings.make_config(SECTION, **flags)


def test_list_of_settings():
    got = settings.parse_settings("plain:0.04, speculative:full:16", SECTION)
    assert [(s.sampler, s.label) for s in got] == [("plain", "0.04"), ("speculative", "full x 16")]
    assert got[0].config.window == CosineWindow(0.04) and got[0].config.temperature == 0.9
    assert got[1].config.window == FullWindow() and got[1].config.verify_rounds == 16
    plain = SamplingConfig()
    more = settings.parse_settings("speculative:1..8:3:tie_first:confidence,plain:0.1:left_to_right", plain)
    assert more[0].config == SpeculativeConfig(LinearWindow(1, 8), 3, order="confidence", tie_first=True)
    assert more[0].label == "1..8 x 3 tie_first confidence"
    assert more[1].config == SpeculativeConfig(CosineWindow(0.1), 8, order="left_to_right")
    assert more[1].label == "0.1 left_to_right"
    shared = settings.parse_settings("speculative:8:3:shared_noise:left_to_right", plain)[0]
    assert shared.config == SpeculativeConfig(ConstantWindow(8), 3, order="left_to_right", shared_noise=True)
    assert shared.label == "8 x 3 shared_noise left_to_right"
    tracks = settings.parse_settings("plain:8,speculative:1:2", plain)
    assert [s.config.window for s in tracks] == [ConstantWindow(8), ConstantWindow(1)]
    assert [s.label for s in tracks] == ["8", "1 x 2"]
    assert len(settings.parse_settings(settings.DEFAULT_SETTINGS, SECTION)) == 16


def test_best_windows_come_from_the_profile():
    profile = tuning.measure(tabular_model(6, 3), np.zeros((2, 6), np.int32), jax.random.key(0), batch_size=2)
    text = "plain:best3,speculative:best3,speculative:best3:2:tie_first"
    assert settings.needs_profile(text) and not settings.needs_profile(settings.DEFAULT_SETTINGS)
    got = settings.parse_settings(text, SamplingConfig(temperature=0.5), profile)
    assert [s.label for s in got] == ["best3", "best3", "best3 x 2 tie_first"]
    for setting, options in zip(got, ({"plain": True}, {}, {"tie_first": True}), strict=True):
        named = recommend(profile, 3.0, **options)
        assert setting.config.window == named.window and setting.config.temperature == 0.5
        assert setting.config.tie_first == named.tie_first
        assert setting.config.verify_rounds == (2 if options == {"tie_first": True} else named.verify_rounds)
    shared = settings.parse_settings("speculative:best3:shared_noise", SamplingConfig(), profile)[0]
    assert shared.label == "best3 shared_noise" and shared.config == recommend(profile, 3.0, shared_noise=True)
    # The section's own tied first track counts too.
    sure = profile._replace(draft_nll_DxS=np.zeros((6, 6)))
    tied = settings.parse_settings("speculative:best3", SamplingConfig(tie_first=True), sure)[0].config
    assert tied.tie_first and tied.window == recommend(sure, 3.0, tie_first=True).window
    assert tied.window != recommend(sure, 3.0).window
    with pytest.raises(ValueError, match="'plain:best3' needs the network's profile"):
        settings.parse_settings(text, SECTION)
    with pytest.raises(ValueError, match=r"'plain:best0\.1': budget_nfe"):
        settings.parse_settings("plain:best0.1", SECTION, profile)


BAD_ENTRIES = [
    "",
    "plain",
    "plain:0.1:2",
    "speculative:0.1",
    "speculative:0.1:two",
    "plain:x",
    "best:0.1",
    "plain:0",
    "plain:best",
]


BAD_NUMBERS = ["plain:best", "plain:-2", "plain:0.0", "plain:1.5", "plain:8.0", "plain:nan"]


@pytest.mark.parametrize("text", BAD_ENTRIES + BAD_NUMBERS)
def test_bad_lists_name_the_entry(text):
    with pytest.raises(ValueError, match="setting"):
        settings.parse_settings(f"plain:0.1,{text}", SECTION)


def test_unknown_sampler():
    with pytest.raises(ValueError, match="sampler"):
        settings.Setting("best", "", settings.make_config(SECTION))
