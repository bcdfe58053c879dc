from __future__ import annotations

from pathlib import Path

import pytest

from t2t_common.io import cli
from t2t_common.run_page.__main__ import main
from tests.support.pages.recorded_runs import lines, record, written


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = written(tmp_path / "run", record(), lines())
    assert cli.run(main, [str(workdir)]) == 0
    path = workdir / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert "<title>run: finished</title>" in path.read_text()


@pytest.mark.parametrize(
    ("args", "message"), [([], "missing: dir"), (["/no/such/run"], "no run in /no/such/run: give")]
)
def test_mistakes_are_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(main, args) == 2
    said = capsys.readouterr().err
    assert message in said.lower()
    assert said.count("\n") == 1
