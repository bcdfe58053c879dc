"""What is said of a checkpoint that does not fill the model as it is."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from t2t_config.text import few
from t2t_config.weights.load_report import LoadReport

EXACT = LoadReport("w.pth", "", False, "official", ("norm.weight",), {}, (), ())


@pytest.mark.parametrize("fresh", [True, False])
def test_an_exact_load_is_silent(fresh: bool):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EXACT.warn(fresh_classifiers=fresh)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resized": {"pos_embed": "2x2 -> 4x4 (bicubic)"}}, "resized: pos_embed 2x2 -> 4x4"),
        ({"left_out": ("aux_head.bias",)}, "left out of the file: aux_head.bias"),
        ({"missing": ("head.bias",)}, "kept as they were in the model: head.bias"),
    ],
)
def test_every_difference_is_told_at_the_line_of_the_caller(change: dict[str, object], says: str):
    report = dataclasses.replace(EXACT, **change)
    with pytest.warns(UserWarning, match=says) as told:
        (lambda: report.warn(fresh_classifiers=True))()
    assert told[0].filename == __file__


def test_what_is_missing_is_refused_unless_it_was_asked_for():
    report = dataclasses.replace(EXACT, missing=("head.bias", "head.weight"))
    with pytest.raises(ValueError, match=r"w\.pth lacks head\.bias, head\.weight: .* num_classes"):
        report.warn(fresh_classifiers=False)


def test_what_was_compared_with_nothing_says_so():
    assert "w.pth: 1 tensors loaded" in str(EXACT)
    assert "has no digests: a change since" in str(EXACT)
    for verified in ("sha256", "crc32"):
        assert len(str(dataclasses.replace(EXACT, verified=verified)).splitlines()) == 1


def test_names_of_strangers_fit_into_a_line():
    assert few(["a", "b"]) == "a, b"
    assert few(["a\nb", "\x1b[31m", "\ud800", "é"], 4) == r"a\nb, \x1b[31m, \ud800, é"
    assert len(few(["x" * 10**6, "y"])) < 120
    assert few(list("abcde")) == "a, b, c and 2 more"


def test_weights_that_are_no_numbers_are_named():
    report = dataclasses.replace(EXACT, not_finite=("head.bias", "head.weight"))
    assert report.doubt.startswith("w.pth holds NaN or infinity in head.bias, head.weight: ")
    with pytest.warns(UserWarning, match=r"holds NaN or infinity in head\.bias"):
        report.warn(fresh_classifiers=True)
    with pytest.raises(ValueError, match=r"w\.pth holds NaN or infinity in head\.bias, head\.weight: .* earlier"):
        report.check_finite()
    EXACT.check_finite()
    assert EXACT.doubt == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prefix": "model."}, "names without the prefix 'model.'"),
        ({"ignored": ("n_averaged",)}, "ignored, counters that are not weights: n_averaged"),
    ],
)
def test_what_was_taken_off_is_told(change: dict[str, object], says: str):
    report = dataclasses.replace(EXACT, **change)
    assert says in str(report)
    assert report.is_notable
    assert not EXACT.is_notable
