"""What the first pages say that training prints, compared with what it prints: it is run, to its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.pages.code_blocks import ROOT
from tools.benchmarks import transcripts

TRAIN, EVALUATE = transcripts.COMMANDS[0], transcripts.COMMANDS[2]
KEPT = json.loads(transcripts.RESULT.read_text())
FIGURES = re.compile(r"top-1 (\S+) % \((\d+) of (\d+)\)")
OTHER_PROCESSORS = 4
"""Images of 360 by which another processor, which rounds otherwise, may differ."""


def right(text: str) -> list[int]:
    """Images that were classified correctly, wherever a text says so."""
    for percent, correct, images in FIGURES.findall(text):
        assert percent == f"{100 * int(correct) / int(images):.2f}"
    return [int(correct) for _, correct, _ in FIGURES.findall(text)]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of README's first command."""
    ((_, found),) = transcripts.transcripts([TRAIN], tmp_path_factory.mktemp("printed"))
    return found["printed"]


def test_training_prints_what_the_first_pages_show(printed: list[str]):
    kept = KEPT["transcripts"][TRAIN]["printed"]
    assert [re.sub(r"[\d.,]+", "#", " ".join(line.split())) for line in printed] == [
        re.sub(r"[\d.,]+", "#", " ".join(line.split())) for line in kept
    ]
    same = KEPT["environment"]["processor"] == transcripts.processor()
    (now,), (then,) = right(printed[-1]), right(kept[-1])
    assert abs(now - then) <= (0 if same else OTHER_PROCESSORS), (printed[-1], kept[-1])


def test_all_figures_of_the_first_pages_are_those_of_that_run():
    """Both packages, both pages."""
    (trained,) = right(KEPT["transcripts"][TRAIN]["printed"][-1])
    assert right(KEPT["transcripts"][EVALUATE]["printed"][-1]) == [trained]
    for page in ("README.md", "docs/index.md"):
        found = right(Path(ROOT / page).read_text(encoding="utf-8"))
        assert len(found) == 2
        assert set(found) == {trained}
