"""What a hub calls its files leads nowhere outside of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_hub import COMMIT, ask, fake_hub

FETCH = """
from t2t_config.weights.hub import fetch
try:
    print(fetch("me/micro", revision="main"))
except ValueError as error:
    print("refused:", error)
"""


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_both_files_of_one_commit(tmp_path: Path):
    with fake_hub() as hub:
        hub.repos["me/micro"] = {"config.json": b"{}", "model.safetensors": b"weights", "other.bin": b"x"}
        folder = Path(ask(hub, FETCH, tmp_path / "home").strip())
    assert folder.name == COMMIT
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": b"{}",
        "model.safetensors": b"weights",
    }


@pytest.mark.parametrize("name", ["../../../../../../escaped", "..", "/tmp/t2t-escaped", "a/b", ".hidden", "x" * 300])
@pytest.mark.parametrize("kind", ["commit", "ETag", "commit of a file that is not there"])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str, kind: str):
    with fake_hub() as hub:
        hub.repos["me/micro"] = {"config.json": b"{}", "model.safetensors": b"weights"}
        if kind == "ETag":
            hub.tag = name
        else:
            hub.commit = name
        if kind == "commit of a file that is not there":
            hub.repos["me/micro"] = {}
        said = ask(hub, FETCH, tmp_path / "a" / "b" / "home")
    assert f"refused: me/micro is neither a folder nor a model on the hub (the hub's {kind[:4]}" in said
    assert "is not a file name, so it is refused)" in said
    assert [name for name in files(tmp_path) if "escaped" in name or "micro" in name] == []
    assert not Path("/tmp/t2t-escaped").exists()
