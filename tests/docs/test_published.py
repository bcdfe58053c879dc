"""Top-1 figures that the authors published are called theirs wherever they stand; no card of a model has one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from t2t_config import MODELS, RECIPES, describe_recipe
from t2t_config.pretrained import PRETRAINED
from t2t_config.weights.card import model_card, to_config
from t2t_config.weights.metadata import describe
from tests.support.pages.code_blocks import ROOT, WRITTEN, page_name

FILES = [file for tags in PRETRAINED.values() for file in tags.values()]
PUBLISHED = {str(top1) for top1 in [*(m.top1 for m in MODELS.values()), *(f.top1 for f in FILES)] if top1 is not None}
FIGURE = re.compile(rf"(?<![\w.,-])(?:{'|'.join(map(re.escape, sorted(PUBLISHED)))})(?![\w.,]?\w)")
"""A published figure; not the start of a file's name such as 81.5_T2T_ViT_14.pth.tar."""
FOLDERS = (
    "docs",
    "examples",
    "tools",
    "t2t_config",
    "t2t_common",
    "t2t_torch",
    "t2t_jax",
    "parity",
)
SUFFIXES = (".md", ".py", ".ipynb", ".cff", ".toml", ".html")


def texts() -> Iterator[Path]:
    """Every file that a user may read a figure in; measurements (JSON, SVG, pages written from them) are ours."""
    paths = itertools.chain(ROOT.glob("*"), *((ROOT / folder).rglob("*") for folder in FOLDERS))
    files = (path for path in paths if path.suffix in SUFFIXES and path.is_file())
    return (path for path in files if page_name(path) not in WRITTEN)


def unmarked(path: Path, text: str) -> list[str]:
    """Paragraphs with a published figure in which the authors are not named.

    Paragraphs of a page end at empty lines, but a table belongs to what stands before it. Modules of figures name the
    authors once, in the docstring at their top.
    """
    if path.suffix == ".py" and "authors'" in text.partition('"""')[2].partition('"""')[0]:
        return []
    parts = re.split(r"\n\s*\n(?!\|)", text)
    return [part for part in parts if FIGURE.search(part) and "authors" not in part]


def test_published_figures_are_called_the_authors():
    found = {str(path.relative_to(ROOT)): unmarked(path, path.read_text(encoding="utf-8")) for path in texts()}
    assert {"README.md", "t2t_config/models.py", "examples/t2t_vit.ipynb"} <= found.keys()
    assert not {path: parts for path, parts in found.items() if parts}


MEASURED = [found for file in FILES if (found := file.measured) is not None]


def test_what_others_measured_is_called_theirs():
    figures = {str(figure) for found in MEASURED for figure in (found.top1, found.top5)}
    assert figures == {"81.44", "95.66"}
    told = {
        str(path.relative_to(ROOT)): part
        for path in texts()
        for part in re.split(r"\n\s*\n(?!\|)", path.read_text(encoding="utf-8"))
        if any(figure in part for figure in figures)
    }
    assert {"README.md", "docs/checkpoints.md"} <= told.keys()
    assert {path: part for path, part in told.items() if "Open Model Zoo" not in part} == {}


def test_unmarked_figures_are_found():
    top1 = MODELS["t2t_vit_14"].top1
    for text in (f"Our top-1 is {top1} %.", f"By the authors.\n\nTop-1 {top1}", f"# Models\n\n| a | {top1} |"):
        assert len(unmarked(Path("page.md"), text)) == 1, text
    for text in (f"The authors' top-1 is {top1} %.", f"{top1}_T2T_ViT_14.pth.tar", f"The authors':\n\n| a | {top1} |"):
        assert unmarked(Path("page.md"), text) == [], text
    assert len(PUBLISHED) > 20


def test_recipes_call_them_the_authors():
    told = [name for name in RECIPES if FIGURE.search(describe_recipe(name))]
    assert len(told) > 20
    for name in told:
        assert "The authors' published top-1 is " in describe_recipe(name) or "T2T-ViT's authors" in describe_recipe(
            name
        )


@pytest.mark.parametrize("name", PRETRAINED)
def test_cards_have_no_published_figure(name: str):
    """Whoever pushes the authors' weights, fitted or trained further, must not seem to have measured their top-1."""
    for file in PRETRAINED[name].values():
        metadata = describe(name, img_size=file.img_size, num_classes=file.num_classes)
        card = model_card(metadata, "me/model") + str(to_config(metadata))
        assert not FIGURE.search(card)
        assert "## Metrics\n\nNot recorded." in card
