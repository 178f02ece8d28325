"""The model that comes with the package, and the settings it is drawn with."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import ssmd_jax
from ssmd_jax.evaluation import generate
from ssmd_jax.evaluation.proteins import pseudo_nll
from ssmd_jax.evaluation.settings import make_config
from ssmd_jax.sampling.config import SpeculativeConfig
from ssmd_jax.sampling.recommend import PROFILE_FILE, Profile, recommend
from ssmd_jax.training import loading, workdir

MOST_BYTES = 24 * 2**20


@pytest.fixture(scope="module")
def released():
    return ssmd_jax.load()


def test_it_is_whole_and_small(released):
    model, tokenizer, config = released
    folder = loading.released()
    assert (folder / "README.md").read_text().startswith("# ")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MOST_BYTES
    assert tokenizer.kind == "text8" and config.length == 256
    assert sum(x.size for x in jax.tree.leaves(model.params)) == 21_855_744
    assert "/" not in "".join(filter(None, (config.data.train, config.data.valid, config.data.test)))


def test_the_network_for_proteins_is_whole_small_and_knows_a_family():
    """Letters of histone H4, one at a time with all others given, are far easier than the alphabet's 20."""
    folder = loading.released().parent / "proteins"
    assert (folder / "README.md").read_text().startswith("# ")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MOST_BYTES
    model, tokenizer, config = ssmd_jax.load(folder)
    assert tokenizer.kind == "esm2" and config.length == 512
    assert (model.config.n_causal, model.config.causal_form, config.sampling.order) == (1, "evidence", "spread")
    assert sum(x.size for x in jax.tree.leaves(model.params)) == 21_455_649 + 1_769_862
    assert "/" not in "".join(filter(None, (config.data.train, config.data.valid, config.data.test)))
    protein = "MSGRGKGGKGLGKGGAKRHRKVLRDNIQGITKPAIRRLARRGGVKRISGLIYEETRGVLKVFLENVIRDAVTYTEHAKRKTVTAMDVVYALKRQGRTLYGFGG"
    assert pseudo_nll(model, tokenizer, [protein], batch_size=8)[0] < 1.0 < np.log(20)
    # Told of the letters between, evidence of few letters comes nearer to what the trunk says of the rest.
    tokens_D, order_D = tokenizer.encode(protein), np.random.default_rng(0).permutation(len(protein)).astype(np.int32)
    tokens_2xD, order_2xD = np.tile(tokens_D[order_D], (2, 1)), np.tile(order_D, (2, 1))
    start_2, lengths_2, size = np.array([24, 40], np.int32), np.full(2, len(protein), np.int32), 17
    context = model.trunk(tokens_2xD, order_2xD, start_2, lengths_2)
    law = lambda logits_2xSxV: jax.nn.log_softmax(logits_2xSxV[..., 4:24] / 0.6)
    draft, target = (
        law(model.draft_logits(context, start_2, size)),
        law(model.target_logits(context, tokens_2xD, order_2xD, start_2, size)),
    )
    taught = draft[1, 0]
    divergence = lambda student: float(jnp.sum(jnp.exp(taught) * (taught - student)))
    assert divergence(target[0, 16]) < divergence(draft[0, 16])


def test_it_predicts_letters(released):
    """A letter of a sentence that nobody trained on, all others given, is easier than the alphabet's 27."""
    model, tokenizer, _ = released
    tokens_D = tokenizer.encode("the keeper of the lighthouse counted the ships again and found that one was missing")
    length, num_hidden = len(tokens_D), 16
    order_BxD = np.stack([np.random.default_rng(n).permutation(length) for n in range(4)]).astype(np.int32)
    start_B, lengths_B = np.full(4, length - num_hidden, np.int32), np.full(4, length, np.int32)
    context = model.trunk(tokens_D[order_BxD], order_BxD, start_B, lengths_B)
    logits_BxWxV = model.draft_logits(context, start_B, num_hidden)
    hidden_BxW = tokens_D[order_BxD][:, -num_hidden:]
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_BxWxV)), hidden_BxW[..., None], -1).mean()
    assert nll < 1.0 < np.log(27)


@pytest.fixture
def drawn(monkeypatch):
    """The settings that `generate.draw` would draw with."""
    seen = []
    monkeypatch.setattr(generate.bench, "draw", lambda _model, setting, *rest, **sizes: seen.append(setting))
    monkeypatch.setattr(generate.ssmd_jax, "load", lambda _path: (None, None, config()))
    monkeypatch.setattr(generate, "encode_prompt", lambda *args, **kwargs: None)
    return seen


def config():
    return ml_collections.ConfigDict(workdir.read_config(loading.released()).to_dict())


def test_windows_are_the_best_ones_where_there_is_a_profile(drawn, tmp_path):
    profile = Profile.load(loading.released() / PROFILE_FILE)
    generate.draw(None)
    generate.draw(None, nfe=12, tie_first=True, order="confidence")
    generate.draw(None, nfe=12, shared_noise=False)
    generate.draw(None, sampler="plain", nfe=24)
    best = [recommend(profile, 16, shared_noise=True)]
    best.append(recommend(profile, 12, tie_first=True, order="confidence", shared_noise=True))
    best += [recommend(profile, 12), recommend(profile, 24, plain=True)]
    assert [setting.config for setting in drawn] == best
    drawn.clear()
    # Windows, rounds or a length of the user's go before; so does the lack of a profile.
    for given in ({"delta_tau": 0.1}, {"verify_rounds": 3}, {"window": "full"}, {"length": 20}):
        generate.draw(None, **given)
    generate.draw(tmp_path)
    assert all(isinstance(setting.config, SpeculativeConfig) for setting in drawn)
    assert not {setting.config.window for setting in drawn} & {each.window for each in best}
    bad = [{"nfe": 12, "window": "full"}, {"nfe": 12, "sampler": "eb"}, {"nfe": 12, "length": 20}]
    for given in (*bad, {"nfe": 1}, {"nfe": float("nan")}):
        with pytest.raises(ValueError, match="nfe"):
            generate.draw(None, **given)
    with pytest.raises(ValueError, match=r"launch/tune\.py measures one"):
        generate.draw(tmp_path, nfe=12)


def test_windows_that_would_cost_too_much_are_not_the_default(drawn, monkeypatch):
    """A short run's cheapest windows may need more than a sixteenth of its tokens."""
    monkeypatch.setattr(generate, "TOKENS_PER_NFE", 256)
    generate.draw(None)
    assert drawn[0].config == make_config(workdir.read_config(loading.released()).sampling)
