"""The notebook: stored without results, and what it finds when it is run, on a CPU, from a folder of its own."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import t2t_jax
import t2t_torch
from t2t_common.data.images import open_image
from t2t_common.data.preprocess import Preprocess, evaluation_image
from t2t_common.evaluation.predict_command import best_classes
from t2t_common.visualize.command import sample_image
from t2t_config import find_pretrained, model_config
from t2t_config.class_names import class_names
from tests.support.clean_env import ROOT, CleanEnv, copy_sources

PATH = ROOT / "examples" / "t2t_vit.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CELLS = {cell.id: cell for cell in NOTEBOOK.cells}

FINDINGS = """
import json
findings = {
    "top1": accuracy.top1,
    "top1_in_torch": 100 * float(np.mean(in_torch.logits.argmax(1) == in_torch.labels)),
    "images": len(in_torch.labels),
    "same": same,
    "logits": float(np.abs(in_jax.logits - in_torch.logits).max()),
    "passed": report.passed,
    "measurements": report.count,
    "refuted": not refuted.passed,
    "culprit": refuted.first_divergence,
}
print(json.dumps(findings))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notebooks run: with the packages of this repository, and without the user's settings of Jupyter."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (settings := tmp_path / "settings" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(settings))
    place = tmp_path / "notebook"
    place.mkdir()
    return place


def cell(source: str, **metadata: Any) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def run(cells: list[NotebookNode], folder: Path) -> list[NotebookNode]:
    """The cells with their outputs; a cell that fails is an error."""
    notebook = nbformat.v4.new_notebook(cells=copy.deepcopy(cells), metadata=copy.deepcopy(NOTEBOOK.metadata))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


def printed(cell: NotebookNode, stream: str = "stdout") -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def shown(cell: NotebookNode) -> list[str]:
    """What is shown besides text, by its richest kind."""
    order = ("text/html", "image/png")
    data = [output.data for output in cell.outputs if output.output_type == "display_data"]
    return [next(kind for kind in order if kind in one) for one in data]


# ---- as it is stored ----


def test_it_is_a_valid_notebook_as_jupyter_writes_it():
    nbformat.validate(NOTEBOOK)
    assert PATH.read_text(encoding="utf-8") == nbformat.writes(NOTEBOOK) + "\n"


def test_no_results_are_stored():
    code = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(NOTEBOOK.metadata) == {"kernelspec", "language_info"}
    assert [cell.id for cell in code if cell.metadata] == ["parameters"]


def test_its_links_lead_somewhere():
    text = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\((.+?)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (PATH.parent / link).is_file()] == []


# ---- as it is run ----


def test_the_journey(folder: Path):
    smaller = cell("DIGIT_SIZE, EPOCHS = 32, 4")
    first = next(i for i, one in enumerate(NOTEBOOK.cells) if "parameters" in one.metadata.get("tags", ()))
    cells = run([*NOTEBOOK.cells[: first + 1], smaller, *NOTEBOOK.cells[first + 1 :], cell(FINDINGS)], folder)
    findings = json.loads(printed(cells[-1]))
    assert findings["top1"] == findings["top1_in_torch"] > 75
    assert findings["same"] == findings["images"] == 360
    assert findings["logits"] < 1e-4
    assert findings["passed"]
    assert findings["measurements"] > 800
    assert findings["refuted"]
    assert findings["culprit"] == "blocks.1.norm2"

    by_id = {one.id: one for one in cells}
    assert by_id["prove"].outputs[0].text.startswith("EQUAL: ")
    pictures = {name: shown(one) for name, one in by_id.items() if one.cell_type == "code" and shown(one)}
    pages, images = ["text/html"], ["image/png"]
    assert pictures == {"predict": images, "look": images, "run": pages, "digit": 2 * images, "prove": pages}
    assert "".join(printed(one, "stderr") for one in cells if one.cell_type == "code") == ""
    assert {path.name for path in folder.iterdir()} == {"t2t_vit_notebook"}
    twin = t2t_torch.from_pretrained(folder / "t2t_vit_notebook" / "digits")
    assert (twin.spec.name, twin.num_classes) == ("t2t_vit_tiny", 10)


def test_it_begins_with_any_weights(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Published ones, here a file of ours in the cache as if downloaded, and a checkpoint by its path."""
    name = "t2t_vit_7"
    published = find_pretrained(name)
    path = folder / Path(published.url).name
    monkeypatch.setenv("T2T_CACHE", str(folder))
    t2t_torch.save_checkpoint(t2t_torch.create_model(name), path)
    note = {"url": published.url, "num_bytes": path.stat().st_size}
    path.with_name(f"{path.name}.json").write_text(json.dumps(note))

    asked = [cell(f"MODEL, WEIGHTS = {name!r}, {weights!r}") for weights in ("pretrained", str(path))]
    begin = [CELLS["parameters"], CELLS["install"], CELLS["device"]]
    steps = [[cell(CELLS[step].source) for step in ("load", "predict")] for _ in asked]
    cells = run([*begin, asked[0], *steps[0], asked[1], *steps[1]], folder)
    assert "4,310,222 parameters, images of 224 pixels, 1000 classes" in printed(cells[4])
    model, how = t2t_jax.create_model(name, pretrained=True), Preprocess.of_model(model_config(name), {})
    logits = np.asarray(model(evaluation_image(open_image(sample_image()), how)[None]))[0]
    guess = best_classes(logits, class_names(1000), 1)[0]
    for predicted in (printed(cells[5]), printed(cells[8])):
        assert predicted.splitlines()[0] == f"{100 * guess.probability:6.2f} %  {guess.name}"


def test_it_installs_the_package_where_it_is_missing(tmp_path: Path):
    sources = copy_sources(tmp_path / "sources")
    script = tmp_path / "install.ipy"
    no_device = "import shutil\nshutil.which = lambda name: None\n"
    after = "\nimport t2t_jax\nprint('installed at', t2t_jax.__file__)\n"
    script.write_text(f"SOURCE = {sources.as_uri()!r}\n{no_device}{CELLS['install'].source}{after}")
    env = CleanEnv(tmp_path / "env", outer=True)
    for _ in range(2):  # the second time there is nothing to do
        done = env.run(env.bin / "python", "-m", "IPython", "--no-banner", script, cwd=tmp_path)
        (place,) = re.findall(r"installed at (.*)", done.stdout)
        assert Path(place).is_relative_to(env.bin.parent)
    assert "pip" not in done.stdout
