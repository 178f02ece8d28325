"""Where expected outputs of other implementations lie: not part of the repository, so tests that need them may skip."""

import os
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def folder(name: str) -> pathlib.Path:
    """The fixture `name`, in the folder that SSMD_JAX_FIXTURES names, or beside the repository; skips without it."""
    root = pathlib.Path(os.environ.get("SSMD_JAX_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not (root / name).is_dir():
        pytest.skip(f"there is no fixture {name} in {root}: set SSMD_JAX_FIXTURES to the folder that holds it")
    return root / name


def llada_tiny(tmp_path: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """The tiny LLaDA as a folder of Hugging Face's form, and what is expected of it."""
    found = folder("llada_tiny")
    (tmp_path / "config.json").write_text((found / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(found / "weights.safetensors")
    return tmp_path, dict(np.load(found / "expected.npz"))
