"""The notebook in examples/ runs from its first cell to its last, and its classifier is good."""

import re

import nbformat
from conftest import ROOT
from nbclient import NotebookClient


def test_the_notebook_runs_and_ends_with_a_good_classifier(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "own_images.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # as it is committed
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = [output.get("text", "") for found in outputs for output in found]
    (accuracy,) = re.findall(r"([\d.]+)% of the test images", "".join(texts))
    assert float(accuracy) > 70
    pictures = [output for found in outputs for output in found if "image/png" in str(output.keys())
                or "image/png" in output.get("data", {})]  # fmt: skip
    assert len(pictures) == 3
    assert float(outputs[-1][-1].data["text/plain"]) > 70
    assert (tmp_path / "classifier.keras").exists()
