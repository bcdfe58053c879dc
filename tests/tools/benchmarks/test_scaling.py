"""Memory of the performer's T2T module is linear in the pixels; that of all scores would not be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_common.io import cli
from tools.benchmarks import scaling


def test_memory_is_linear_in_the_pixels(tmp_path: Path):
    path = tmp_path / "scaling.json"
    options = ["--model", "t2t_vit_7", "--sizes", "64", "128", "--batch", "1", "--calls", "1", "--json", str(path)]
    assert cli.run(scaling.main, options) == cli.OK
    sizes = json.loads(path.read_text())["sizes"]
    assert sizes["128"]["temporary_bytes"] / sizes["64"]["temporary_bytes"] == pytest.approx(4, rel=0.15)
    assert sizes["64"]["seconds"] > 0


def test_what_cannot_be_done(capsys: pytest.CaptureFixture[str]):
    assert cli.run(scaling.main, ["--calls", "0"]) == cli.MISUSED
    assert "at least one" in capsys.readouterr().err
