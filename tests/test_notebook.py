"""The notebook runs from top to bottom in a kernel of its own, and its cells find what they should."""

import ast
import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import headstart

NOTEBOOK = Path(headstart.__file__).parent / "docs" / "notebook.ipynb"
KERNEL = "headstart-test"


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> str:
    """A kernel of this Python, whatever kernels and settings the user has."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": KERNEL, "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return KERNEL


def run(kernel: str, folder: Path) -> dict[str, list[dict]]:
    """Return the outputs of each cell, by its id."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder.mkdir()
    client = NotebookClient(notebook, kernel_name=kernel, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def value(outputs: list[dict]):
    """Return what a cell's last line gave."""
    [result] = [output for output in outputs if output.output_type == "execute_result"]
    return ast.literal_eval(result.data["text/plain"].replace("np.float64", ""))


def printed(outputs: list[dict]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def told(outputs: dict[str, list[dict]]) -> str:
    """Return what cells wrote to standard error."""
    return "".join(
        o.text for cell in outputs.values() for o in cell if o.output_type == "stream" and o.name == "stderr"
    )


def test_it_runs_on_photographs(kernel, few, tmp_path, monkeypatch):
    shutil.copytree(few, tmp_path / "samples" / "hymenoptera")
    monkeypatch.setenv("HEADSTART_SAMPLES", str(tmp_path / "samples"))
    outputs = run(kernel, tmp_path / "work")
    assert told(outputs) == ""
    assert "image/png" in outputs["look"][0].data
    assert "36 images: 36 embedded, 0 reused, 0 failed" in printed(outputs["embed"])
    assert value(outputs["embed"]) == (36, 1280)
    assert value(outputs["again"]) == (0, 36)
    assert printed(outputs["fit"]).startswith("24 training, 12 validation images, 2 classes\n")
    confusion = value(outputs["confusion"])
    assert sum(map(sum, confusion)) == 12
    assert confusion[0][0] + confusion[1][1] >= 10
    errors = value(outputs["evaluate"])
    assert len(errors) == min(3, confusion[0][1] + confusion[1][0])
    assert any("image/png" in output.get("data", {}) for output in outputs["confusion"])
    count, accuracy, deviation = value(outputs["pipeline"])
    assert count == 24
    assert accuracy > 0.8
    assert deviation < 0.3
    best, score = value(outputs["search"])
    assert set(best) == {"frozenbackbone__resize", "logisticregression__C"}
    assert score >= accuracy - 0.001, "the pipeline's own settings are among those that were tried"
    first, last = value(outputs["predict"])
    assert 0.5 <= first[2] <= 1
    assert 0 <= last[3] <= 1
    assert value(outputs["memory"])[0] == first[1] or errors
    assert (tmp_path / "work" / "models" / "first" / "model.json").is_file()


@pytest.mark.slow
def test_it_runs_on_what_comes_with_scikit_learn(kernel, tmp_path, monkeypatch):
    monkeypatch.delenv("HEADSTART_SAMPLES", raising=False)
    outputs = run(kernel, tmp_path / "work")
    assert value(outputs["embed"]) == (600, 1280)
    assert value(outputs["again"]) == (0, 600)
    assert sum(map(sum, value(outputs["confusion"]))) > 90
    count, accuracy, _ = value(outputs["pipeline"])
    assert count == 600 - sum(map(sum, value(outputs["confusion"])))
    assert accuracy > 0.8


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None), cell.id
