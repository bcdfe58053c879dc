"""The campaign of fuzzing: a short form of it, and that it finds what it looks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.reliability import fuzz
from tools.reliability.fuzzing import campaign
from tools.reliability.fuzzing.reader import case_of, find_reader
from tools.reliability.record import RESULTS, known_defects

ROOT = Path(__file__).parents[3]

PLANTED = {
    "well": "refused",
    "undocumented": "KeyError gets out",
    "nameless": "the message names no file",
    "crash": "it ends the process (-11)",
    "hang": "it hangs",
    "blow_up": "it fills the memory",
    "escape": "it writes where it should not",
    "escape_far": "it does more than read",
    "change": "it writes where it should not",
    "change_a_class": "it changes the process",
    "run_code": "it does more than read",
    "run_hidden": "it does more than read",
}


def test_every_planted_fault_is_found():
    """And the worker goes on behind a case that ended it."""
    counts = {f"tests.support.readers.planted.{name}": 2 for name in PLANTED}
    tallies = campaign.run({**counts, "tests.support.readers.planted.well": 3}, seed=0)
    found = {name.rpartition(".")[2]: tally for name, tally in tallies.items()}
    assert found.pop("well").outcomes == {"read": 1, "refused": 2}
    assert {name: [told.outcome for told in tally.defects] for name, tally in found.items()} == {
        name: [outcome] for name, outcome in PLANTED.items() if name != "well"
    }
    assert all(tally.outcomes["read"] == 1 for tally in found.values())
    assert not Path("/tmp/t2t-fuzz-escaped").exists()


def test_a_reader_that_only_sleeps_hangs_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(campaign, "PATIENCE", 2)
    (tally,) = campaign.run({"tests.support.readers.planted.sleep": 2}, seed=0).values()
    assert [told.outcome for told in tally.defects] == ["it hangs"]


SHORT = {
    "pth": 12,
    "pdparams": 60,
    "label_map": 40,
    "idx": 60,
    "tar": 60,
    "tar_whole": 60,
    "image_folder": 40,
    "class_files": 60,
    "parity_report": 40,
    "run_page": 25,
}


def test_a_short_campaign_finds_nothing():
    (ours,) = {name.rpartition(".")[0].rpartition(".")[0] for name in fuzz.counts(100)}
    short = {
        f"{ours}.{name}": SHORT[name.rpartition(".")[2]] for name in fuzz.CASES if name.rpartition(".")[2] in SHORT
    }
    tallies = campaign.run(short, seed=1)
    assert {name: tally.defects for name, tally in tallies.items()} == {name: [] for name in short}
    assert all(tally.outcomes["read"] and tally.outcomes["refused"] for tally in tallies.values())


@pytest.mark.parametrize("reader", ["pth", "label_map"])
def test_pickles_and_zips_that_are_made_to_harm(reader: str):
    """Depth, calls, changed classes, archives that read as two: all of them, and nothing else than refused or read."""
    name = f"tests.support.readers.tricks.{reader}"
    (tally,) = campaign.run({name: 60}, seed=0).values()
    assert tally.defects == []
    assert tally.outcomes["refused"] > 30


def test_a_case_is_decided_by_its_seed_and_number():
    name = "tools.reliability.fuzzing.data.class_files"
    reader = find_reader(name)
    cases = [case_of(reader, name, seed, number) for seed, number in ((0, 5), (0, 5), (0, 6), (1, 5))]
    assert cases[0] == cases[1]
    assert cases[0] != cases[2]
    assert cases[0] != cases[3]
    assert case_of(reader, name, 0, 0) == reader.trees[0]


def test_cases_are_shared_among_all_readers():
    counts = fuzz.counts(100_000)
    assert len(counts) == len(fuzz.CASES)
    assert 100_000 <= sum(counts.values()) < 100_100
    assert fuzz.counts(7, ["idx"], each=7) == {"tools.reliability.fuzzing.data.idx": 7}
    with pytest.raises(ValueError, match="no reader 'x': choose among pth, "):
        fuzz.counts(7, ["x"])


def test_the_recorded_campaign():
    """Enough cases, of every reader, and none with a defect."""
    found = json.loads((RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    assert found["cases"] >= 100_000
    assert found["cases with a defect"] == 0
    assert found["readers"].keys() == {name.rpartition(".")[2] for name in fuzz.CASES}


@pytest.mark.parametrize("defect", known_defects("fuzz"), ids=lambda defect: defect.test.rpartition("::")[2])
def test_every_fix_has_its_test(defect):
    file, _, name = defect.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
