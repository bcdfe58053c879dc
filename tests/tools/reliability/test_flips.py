"""The campaign of flipped bits: a short form of it, and that it finds what it looks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from t2t_common.io import cli
from tools.reliability import flips
from tools.reliability.fuzzing.flipping import FORMATS, Format, parts
from tools.reliability.record import RESULTS

QUICK = ("pth", "safetensors-torch", "safetensors-jax", "orbax", "run-torch", "run-jax", "foreign-zip")


@pytest.mark.parametrize("name", QUICK)
def test_no_flipped_bit_changes_a_tensor_in_silence(name: str):
    found = list(flips.flips_of(FORMATS[name](), name, 24, seed=1))
    assert {flip.outcome for flip in found} <= {flips.REFUSED, flips.SAME}, found
    assert sum(flip.outcome == flips.REFUSED for flip in found) >= 12
    assert {flip.region for flip in found} == set(flips.REGIONS)


def unguarded(folder: Path) -> Mapping[str, Any]:
    content = (folder / "file").read_bytes()
    if content[0] != 7:
        raise KeyError("seven")
    if content[1:-1] != bytes(98):
        raise ValueError(f"{folder / 'file'} is damaged" if content[1] else "something is damaged")
    return parts({"last": content[-1:]}, other=0)


def test_what_is_not_noticed_is_found():
    """The three kinds of defects, and the same again by the same seed."""
    plain = Format(lambda folder: (folder / "file").write_bytes(b"\x07" + bytes(99)), unguarded)
    found = [list(flips.flips_of(plain, "plain", 200, seed=0)) for _ in range(2)]
    assert found[0] == found[1]
    outcomes = {flip.outcome for flip in found[0]}
    assert {flips.ERROR, flips.TENSOR, flips.REFUSED} <= outcomes
    rows = flips.figures(found[0])
    assert rows["flips"] == 200
    assert rows["changed_in_silence"] == sum(flip.outcome == flips.TENSOR for flip in found[0]) > 0


def test_the_command_ends_with_one_where_a_flip_was_not_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    plain = Format(lambda folder: (folder / "file").write_bytes(b"\x07" + bytes(99)), unguarded)
    monkeypatch.setattr(flips, "FORMATS", {"plain": lambda: plain})
    args = ["--flips", "60", "--json", str(tmp_path / "flips.json")]
    assert cli.run(flips.main, args) == cli.FAILED
    assert "plain: a tensor changed in silence: file byte 99" in capsys.readouterr().out
    assert json.loads((tmp_path / "flips.json").read_text())["flips"] == 60
    assert cli.run(flips.main, ["--only", "none"]) == cli.MISUSED
    assert "error: no format 'none': it is one of plain" in capsys.readouterr().err


def test_the_recorded_campaign_had_a_thousand_and_no_tensor_changed_in_silence():
    found = json.loads((RESULTS / "flips.json").read_text())
    assert found["flips"] >= 1000
    assert found["changed_in_silence"] == found["other errors"] == 0
    assert found["by format"].keys() == FORMATS.keys()
    assert {row[flips.TENSOR] for row in found["by format"].values()} == {0}
