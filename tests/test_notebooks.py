"""Notebooks run from their first cell to their last, and are stored as they were written."""

import os
import pathlib
import re

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install nbclient")

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
TIMEOUT_S = 600


def read(path):
    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@NOTEBOOKS
def test_stored_without_outputs(path):
    for cell in read(path)[1]:
        assert not cell.outputs and cell.execution_count is None and "execution" not in cell.metadata


@NOTEBOOKS
def test_logic_is_the_packages(path):
    for cell in read(path)[1]:
        assert not re.search(r"^\s*(def|class|while|@)\b", cell.source, re.MULTILINE), cell.source


@pytest.mark.slow
@NOTEBOOKS
def test_runs_without_errors(path):
    """In the folder where Jupyter would start it; pictures are drawn and frames shown."""
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient")
    pytest.importorskip("ipykernel", reason="pip install ipykernel")
    notebook, code = read(path)
    # The tests' compiler flags are for programs that hardly run.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=TIMEOUT_S, resources=resources)
    client.execute(env={**environment, "JAX_PLATFORMS": "cpu"})
    assert all(cell.execution_count for cell in code)
    kinds = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
