"""Weights come back as they were written, within the rounding of their dtype."""

import numpy as np
import pytest

from ssmd_jax.model import weights

RNG = np.random.default_rng(0)
PARAMS = {
    "head": RNG.normal(size=(7, 31)).astype(np.float32),
    "block": {"kernel": RNG.normal(size=(2, 64, 3)).astype(np.float32), "scale": RNG.normal(size=5).astype(np.float32)},
    "zero": np.zeros((3, 3), np.float32),
    # norms of a scanned trunk, and a map that was hardly trained
    "stacked": {"scale": RNG.normal(size=(11, 9)).astype(np.float32)},
    "small": (1e-6 * RNG.normal(size=(8, 70))).astype(np.float32),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", None)])
def test_what_is_written_is_read(dtype, tolerance, tmp_path):
    weights.save(tmp_path / "w", PARAMS, dtype)
    found = weights.load(tmp_path / "w")
    assert set(found) == set(PARAMS) and set(found["block"]) == {"kernel", "scale"}
    for part in ("block", "stacked"):
        np.testing.assert_array_equal(found[part]["scale"], PARAMS[part]["scale"])
    np.testing.assert_array_equal(found["zero"], 0)
    pairs = [(found[name], PARAMS[name]) for name in ("head", "small")]
    for one, other in [*pairs, (found["block"]["kernel"], PARAMS["block"]["kernel"])]:
        assert one.dtype == np.float32
        if dtype == "int8":
            flat = np.pad(np.abs(other).reshape(-1), (0, -other.size % weights.GROUP)).reshape(-1, weights.GROUP)
            bound = np.repeat(flat.max(axis=1), weights.GROUP)[: other.size].reshape(other.shape) * (1 / 254 + 1e-6)
            assert (np.abs(one - other) <= bound).all() and not np.array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=tolerance)


def test_bytes_of_int8(tmp_path):
    big = {"kernel": RNG.normal(size=(512, 512))}
    weights.save(tmp_path / "w", big, "int8")
    assert (tmp_path / "w").stat().st_size == pytest.approx(512 * 512 * (1 + 4 / weights.GROUP), rel=0.01)


def test_bad_files_and_dtypes(tmp_path):
    with pytest.raises(ValueError, match="dtype must be one of"):
        weights.save(tmp_path / "w", PARAMS, "int4")
    with pytest.raises(ValueError, match="there are no weights"):
        weights.load(tmp_path / "missing")
    (tmp_path / "bad").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        weights.load(tmp_path / "bad")
