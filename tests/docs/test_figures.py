"""Figures of the pages are what the code computes, or what a command wrote into a file; none stands there unheld."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import pytest

import t2t_parity.survey
import t2t_torch
import tools.benchmarks.scaling
from t2t_config import MODELS, model_config, recipe
from t2t_config.flops import forward_flops, training_flops
from t2t_config.pretrained import PRETRAINED
from t2t_jax import compile
from tests.support.pages.code_blocks import PAGES, ROOT, WRITTEN, page_name, shell_lines
from tests.support.pages.figures import FIGURES, SURVEY
from tools.benchmarks import transcripts

ROW = re.compile(r"^\| `(t2t_\w+)` \| (\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| (.*) \|$", re.MULTILINE)

NO_FIGURES = (
    r"^```.*?^```|`[^`]+`",  # code, which is run by test_code_blocks, and what it prints
    r"arXiv \d{4}\.\d{5}|, \d{4}(?=\])",  # papers
    r"\]\([^)]*\)|^ {4,}.*?$",  # addresses, options of the pages of the API
    r"^\d\. |^\*\*\d\. |Journey \d",  # numbers of steps
)
FIGURE = re.compile(r"(?<![\w.])(?<!\w-)\d[\d,.]*")


def plain(text: str) -> str:
    """In one line; a notebook's strings put together."""
    return " ".join(re.sub(r'\\n",\s*"', " ", text).split())


def unheld(page: str, text: str) -> list[str]:
    """Figures in the prose that are in no phrase of FIGURES, with the words around them."""
    text = ROW.sub("", text)
    for pattern in NO_FIGURES:
        text = re.sub(pattern, "``", text, flags=re.DOTALL | re.MULTILINE)
    text = plain(text)
    for phrase in FIGURES.get(page, ()):
        text = text.replace(plain(re.sub(r"`[^`]+`", "``", phrase)), "``")
    return [text[max(0, found.start() - 30) : found.end() + 20] for found in FIGURE.finditer(text)]


@pytest.mark.parametrize("page", FIGURES)
def test_figures_are_computed_again(page: str):
    text = plain((ROOT / page).read_text(encoding="utf-8"))
    assert [phrase for phrase in FIGURES[page] if plain(phrase) not in text] == []


def test_no_figure_is_without_its_computation():
    pages = [page for page in map(page_name, PAGES) if page not in WRITTEN]
    for page in [*pages, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]:
        assert unheld(page, (ROOT / page).read_text()) == [], page


def test_figures_are_found():
    assert len(unheld("a.md", "It is 3.5 times as fast, -0.5 or 1e-3, at 12 %.")) == 4
    assert unheld("a.md", "T2T-ViT-14 in float32, `x = 3`, [page](x3.md), arXiv 2101.11986\n\n```sh\na 3\n```") == []


def test_the_table_of_models():
    rows = ROW.findall((ROOT / "README.md").read_text())
    in_paper = {name for name, config in MODELS.items() if config.in_paper and config.arch != "VisionTransformer"}
    assert {name for name, *_ in rows} == in_paper
    for name, tokens, parameters, macs, top1, weights in rows:
        config = model_config(name)
        assert tokens == config.sizes["tokens_type"], name
        assert parameters == f"{config.num_params:,}", name
        assert macs == f"{forward_flops(name) / 2e9:.2f}", name
        assert float(top1) == config.top1, name
        published = PRETRAINED.get(name, {}).items()
        cells = [f"`{tag}`" if tag == "in1k" else f"`{tag}` {file.top1}" for tag, file in published]
        assert weights == (", ".join(cells) or "none"), name


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("t2t_vit_7", 1.1),
        ("t2t_vit_10", 1.5),
        ("t2t_vit_12", 1.8),
        ("t2t_vit_14", 4.8),
        ("t2t_vit_19", 8.5),
        ("t2t_vit_t_14", 6.1),
        ("t2t_vit_t_19", 9.8),
        ("t2t_vit_t_24", 15.0),
    ],
)
def test_the_authors_counts_are_ours(name: str, published: float):
    """Of their README, 10^9 MACs, after their own correction for T2T-ViT-7, 10 and 12. For T2T-ViT-24 it says 13.8,
    which is 0.1 more than their blocks have."""
    assert abs(forward_flops(name) / 2e9 - published) <= 0.051


# ---- figures of commands that take long: the page is what the file says, and a cheap row of it is computed again ----


def test_figures_of_every_model_are_those_of_the_file():
    figures = [t2t_parity.survey.Figure(**figure) for figure in SURVEY["figures"]]
    assert (ROOT / "docs" / "parity.md").read_text() == t2t_parity.survey.as_markdown(figures, SURVEY["environment"])


def test_a_row_of_the_figures_of_every_model():
    """Counts exactly, errors within three times: their order of summation differs between machines."""
    kept = next(t2t_parity.survey.Figure(**figure) for figure in SURVEY["figures"] if figure["name"] == "t2t_vit_micro")
    (found,) = t2t_parity.survey.survey(["t2t_vit_micro"])
    assert (found.layers, found.passed, found.changes) == (kept.layers, kept.passed, kept.changes)
    for name in ("forced64", "free64", "logits64", "gradient64", "logits32_jax", "logits32_torch"):
        assert 1 / 3 < getattr(found, name) / getattr(kept, name) < 3, name


RESULTS = ROOT / "tools" / "benchmarks" / "results"
STEPS = [path for folder in ("tpu", "lowered", "batches") for path in sorted((RESULTS / folder).glob("*.json"))]


def test_a_row_of_memory_against_pixels():
    kept = json.loads((RESULTS / "scaling.json").read_text())
    side, batch, model = min(kept["sizes"], key=int), kept["options"]["batch"], kept["options"]["model"]
    found = tools.benchmarks.scaling.measure(model, int(side), batch, calls=1)
    assert found["temporary_bytes"] == pytest.approx(kept["sizes"][side]["temporary_bytes"], rel=0.05)


@pytest.mark.parametrize("path", STEPS, ids=lambda path: path.name)
def test_analytic_flops_of_steps_for_tpus(path: Path):
    kept = json.loads(path.read_text())
    flops = kept["batch"] * training_flops(kept["model"], img_size=kept["img_size"])
    assert kept["analytic_flops"] == pytest.approx(flops, rel=1e-9)


# ---- what commands print ----


def shown(page: Path) -> list[str]:
    """Lines of text that a page shows below commands of the shell."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    pairs = itertools.pairwise(blocks)
    return [
        line for (before, _), (kind, text) in pairs if (before, kind) == ("sh", "text") for line in text.splitlines()
    ]


def test_what_commands_print_is_what_they_printed():
    kept = json.loads(transcripts.RESULT.read_text())["transcripts"]
    assert [*kept] == [*transcripts.COMMANDS]
    pages = [ROOT / "docs" / name for name in ("index.md", "own_data.md")]
    assert set(kept) <= {line for page in pages for line in shell_lines(page)}
    printed = [line.rstrip() for transcript in kept.values() for line in transcript["printed"]]
    for page, least in zip((*pages, ROOT / "README.md"), (12, 19, 3), strict=True):
        lines = [line for line in shown(page) if line != "..."]
        assert len(lines) >= least
        assert [line for line in lines if line not in printed] == []


def test_the_step_that_readme_compiles_is_that_of_the_file():
    text = (ROOT / "README.md").read_text()
    (command,) = (line for line in shell_lines(ROOT / "README.md") if "t2t_jax.compile" in line)
    kept = json.loads((RESULTS / "tpu" / "1-t2t_vit_14_data-4-fsdp-4.json").read_text())
    fields = {field.name for field in dataclasses.fields(compile.Report)}
    report = compile.Report(**{name: value for name, value in kept.items() if name in fields})
    mesh = ",".join(f"{axis}={size}" for axis, size in report.mesh.items())
    assert f"--model {report.model} --topology {report.topology} --mesh {mesh}" in command
    start = "\n".join(str(report).splitlines()[:3])
    assert f"```text\n{start}\n```" in text


def test_counts_of_tensors_and_layers_that_commands_print():
    printed = "\n".join(shown(ROOT / "docs" / "index.md"))
    model = t2t_torch.create_model("t2t_vit_tiny", img_size=recipe("digits").img_size, in_chans=1, num_classes=10)
    assert f"{len(model.state_dict())} tensors of t2t_vit_tiny" in printed
    layers = next(figure["layers"] for figure in SURVEY["figures"] if figure["name"] == "t2t_vit_tiny")
    assert f"{layers} layer calls" in printed
