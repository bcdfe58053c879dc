"""The figures of every model: taken from checks, kept from run to run, and never under other versions."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

import t2t_parity.survey
from t2t_parity.pair import make_pair
from t2t_parity.survey import COLUMNS, Figure, survey, write

ENVIRONMENT = {"versions": {"torch": "2", "jax": "0"}, "jax_devices": ["cpu"]}


def figure(name: str, forced: float = 1e-16, passed: bool = True) -> Figure:
    return Figure(name, passed, "", 9, forced, 1e-15, 2e-15, 3e-14, 1e-7, 2e-7, 1.0)


def test_figures_are_those_of_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t2t_parity.survey, "make_pair", functools.partial(make_pair, img_size=32))
    monkeypatch.setattr(t2t_parity.survey, "REDUCED", {"t2t_vit_micro": {"depth": 1}})
    names: list[str] = []
    (found,) = survey(["t2t_vit_micro"], progress=names.append)
    assert names == ["t2t_vit_micro"]
    assert (found.name, found.passed, found.changes) == ("t2t_vit_micro", True, "depth 1")
    for error, gate in ((found.forced64, 1e-13), (found.free64, 1e-13), (found.gradient64, 1e-12)):
        assert 1e-17 < error <= gate
    assert 1e-9 < found.logits32_torch < 1e-5
    assert found.layers > 40


def test_the_page_grows_from_run_to_run(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    write([figure("t2t_vit_14"), figure("t2t_vit_7")], ENVIRONMENT, page)
    write([figure("vit_base_patch16_224"), figure("t2t_vit_7", 5e-17, passed=False)], ENVIRONMENT, page)
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["t2t_vit_7", "t2t_vit_14", "vit_base_patch16_224"]
    assert "5.0e-17" in rows[0]
    assert rows[0].endswith("**no** |")
    assert all(row.count("|") == len(COLUMNS) + 1 for row in rows)
    (missing,) = (line for line in page.read_text().splitlines() if line.startswith("Not run"))
    assert "`t2t_vit_24`" in missing
    assert "`t2t_vit_14`" not in missing
    assert len(json.loads(page.with_suffix(".json").read_text())["figures"]) == 3


def test_figures_of_other_versions_are_dropped(tmp_path: Path) -> None:
    page = tmp_path / "parity.md"
    write([figure("t2t_vit_7")], {**ENVIRONMENT, "versions": {"torch": "1", "jax": "0"}}, page)
    write([figure("t2t_vit_14")], ENVIRONMENT, page)
    table = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in table] == ["t2t_vit_14"]


@pytest.mark.parametrize(
    "text", ["{}", "[]", "[" * 100_000, '{"environment": {"versions": {}}, "figures": [{"name": 3}]}']
)
def test_figures_that_make_no_sense_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "parity.json").write_text(text)
    with pytest.raises(ValueError, match=r"parity.json does not hold the results of a survey"):
        write([figure("t2t_vit_7")], ENVIRONMENT, tmp_path / "parity.md")
    assert (tmp_path / "parity.json").read_text() == text
