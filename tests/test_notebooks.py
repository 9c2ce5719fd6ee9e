"""Every notebook in colab/ runs from a clean kernel on a smoke model, shows what it promises, and is committed without
outputs."""

import os
import pathlib
import subprocess
import sys

import nbclient
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))

# What some cells must show, by notebook and cell id: a picture (a MIME type) or words of the printed text.
PICTURE = "image/png"
SHOWN = {
    "quickstart": {
        "patches": PICTURE, "features-picture": PICTURE, "towers": PICTURE, "row-picture": PICTURE,
        "mask-picture": PICTURE, "decoder": PICTURE, "logits": PICTURE, "chat-picture": PICTURE,
        "connector": "VT: V' = 16 x D = 32", "answer": "What color is the 7?", "chat": "What is left of the",
    },
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A trained model of the smoke config; one short stage, since nothing in a notebook may depend on its quality."""
    path = tmp_path_factory.mktemp("notebooks") / "smoke"
    command = [sys.executable, "-m", "vlm_jax.train", "--config", "configs/smoke.py", "--workdir", str(path),
               "--config.run=instruct", "--config.stages.instruct.steps=2", "--config.evals.tasks=()"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook from its own folder, as Jupyter does, in a new kernel of the interpreter that runs the tests."""
    write_kernel_spec(tmp_path / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))  # searched first: no kernel of the user's own is taken
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a set one would keep pictures out of the notebook

    def run(path, workdir):
        monkeypatch.setenv("VLM_JAX_WORKDIR", str(workdir))
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(path.parent)}}
        return nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()

    return run


def shown(cell):
    """Printed text and the MIME types of displayed things, as one string."""
    return "\n".join(text for output in cell.outputs for text in (output.get("text", ""), *output.get("data", ())))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_shows(path, workdir, execute):
    notebook = execute(path, workdir)
    cells = {cell.id: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert any(PICTURE in text for text in cells.values())
    missing = {name: words for name, words in SHOWN.get(path.stem, {}).items() if words not in cells[name]}
    assert not missing, {name: cells[name] for name in missing}


def test_without_a_trained_model_the_quickstart_says_how_to_make_one(tmp_path, execute):
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="make quickstart"):
        execute(ROOT / "colab" / "quickstart.ipynb", tmp_path / "nothing")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
