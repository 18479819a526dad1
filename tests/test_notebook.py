"""The notebook of the examples runs from its first cell to its last, and shows what it should."""

import json
import os

import pytest
from guides import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def test_it_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for cell in code:
        compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
def test_it_runs_and_shows_matrix_picture_and_tables(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the extra [test] is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    pages = "\n".join(data.get("text/html", "") for data in shown)
    assert "<svg" in pages and "last accuracy" in pages and "Paired tests" in pages  # noqa: PT018
    assert any("image/svg+xml" in data for data in shown)
    assert (tmp_path / "runs" / "notebook" / "report.html").stat().st_size > 100_000
