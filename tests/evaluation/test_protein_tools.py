"""Judges that are programs of others: what they say of made-up proteins, and what is said where they are missing."""

import os
import shutil
import sys

import numpy as np
import pytest

from ssmd_jax.evaluation import protein_tools
from tests.evaluation.test_proteins import draw

MMSEQS = os.environ.get("MMSEQS", "mmseqs")
needs_mmseqs = pytest.mark.skipif(shutil.which(MMSEQS) is None, reason="needs the program mmseqs, or $MMSEQS")


def mutated(sequence, share, seed=0):
    rng = np.random.default_rng(seed)
    letters = np.array(list(sequence))
    chosen = rng.random(len(letters)) < share
    letters[chosen] = rng.choice(list("LAGVSERTIDPKQNFYMHWC"), chosen.sum())
    return "".join(letters)


def test_hits_of_a_profile(tmp_path):
    pyhmmer = pytest.importorskip("pyhmmer", reason="needs the package pyhmmer")
    family = draw(1, shortest=80, longest=81)[0]
    alphabet = pyhmmer.easel.Alphabet.amino()
    background = pyhmmer.plan7.Background(alphabet)
    seed = pyhmmer.easel.TextSequence(name=protein_tools._name(0), sequence=family).digitize(alphabet)
    profile, _, _ = pyhmmer.plan7.Builder(alphabet).build(seed, background)
    with open(tmp_path / "family.hmm", "wb") as file:
        profile.write(file)
    others = draw(6, seed=1, shortest=80, longest=81)
    sequences = [others[0], mutated(family, 0.2), *others[1:], family]
    hits = protein_tools.pfam_hits(sequences, tmp_path / "family.hmm", cpus=1)
    np.testing.assert_array_equal(np.flatnonzero(hits), [1, 7])
    with pytest.raises(ValueError, match="there are no profiles at"):
        protein_tools.pfam_hits(sequences, tmp_path / "none.hmm")
    (tmp_path / "bad.hmm").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"the profiles .* cannot be read"):
        protein_tools.pfam_hits(sequences, tmp_path / "bad.hmm")


@needs_mmseqs
def test_neighbours_and_clusters():
    natural = draw(30, shortest=150, longest=151)
    near, far = mutated(natural[3], 0.3), draw(1, seed=9, shortest=150, longest=151)[0]
    found = protein_tools.nearest([natural[3], near, far], iter(natural), MMSEQS)
    same = np.mean([a == b for a, b in zip(near, natural[3], strict=True)])
    assert found.identity_N[0] == pytest.approx(1.0) and found.identity_N[1] == pytest.approx(same, abs=0.05)
    assert found.identity_N[2] < 0.3 and found.is_found_N[:2].all()
    copies = [mutated(natural[0], 0.05, seed) for seed in range(5)]
    assert protein_tools.count_clusters([*copies, *natural[1:4]], MMSEQS) == 4


def test_mean_plddt_of_a_tiny_esmfold(tmp_path):
    pytest.importorskip("torch", reason="needs the packages torch and transformers")
    transformers = pytest.importorskip("transformers", reason="needs the packages torch and transformers")
    structure = {"sequence_dim": 16, "pairwise_dim": 8, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2,
                 "num_qk_points": 2, "num_v_points": 2, "num_blocks": 1}  # fmt: skip
    trunk = {"num_blocks": 1, "sequence_state_dim": 16, "pairwise_state_dim": 8, "sequence_head_width": 4,
             "pairwise_head_width": 4, "position_bins": 4, "max_recycles": 1}  # fmt: skip
    trunk["structure_module"] = structure
    fold = {"trunk": trunk, "lddt_head_hid_dim": 8, "fp16_esm": False}
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, position_embedding_type="rotary", is_folding_model=True, esmfold_config=fold,
    )  # fmt: skip
    transformers.EsmForProteinFolding(config).save_pretrained(tmp_path)
    said = []
    values = protein_tools.mean_plddt(["MKVLAG", "GAV"], protein_tools.load_esmfold(tmp_path), said.append)
    assert values.shape == (2,) and ((values > 0) & (values < 100)).all()
    with pytest.raises(ValueError, match="there is no ESMFold at"):
        protein_tools.load_esmfold(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"the ESMFold in .* cannot be read"):
        protein_tools.load_esmfold(tmp_path)


def test_what_is_missing_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="need MMseqs2, and there is no program nothing: install mmseqs2"):
        protein_tools.nearest(["MKV"], ["MKV"], "nothing")
    failing = tmp_path / "mmseqs"
    failing.write_text("#!/bin/sh\necho no space left >&2\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(ValueError, match="easy-cluster ended with status 3: no space left"):
        protein_tools.count_clusters(["MKV"], str(failing))
    for name in ("pyhmmer", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="needs the package pyhmmer"):
        protein_tools.pfam_hits(["MKV"], tmp_path)
    with pytest.raises(ValueError, match="pip install torch transformers"):
        protein_tools.load_esmfold(tmp_path)
