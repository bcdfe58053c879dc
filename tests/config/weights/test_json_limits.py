from __future__ import annotations

import json
import math

import pytest

from t2t_config.weights.json_limits import MAX_DEPTH, check_depth, parse


@pytest.mark.parametrize("value", [None, 1.5, "text", [], {}, [[1], {"a": [2, {"b": None}]}], list(range(5000))])
def test_what_is_not_deep_is_parsed(value: object):
    assert parse(json.dumps(value)) == value
    assert parse(json.dumps(value).encode()) == value
    assert math.isnan(parse("NaN"))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_held_to_a_limit(opening: str, closing: str):
    """The parser itself goes far deeper than whoever copies, compares or writes the value can."""
    parse(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(ValueError, match=r"^nested more than 100 levels deep$"):
            parse(opening * depth + "1" + closing * depth)


def test_values_of_python():
    check_depth(([{1}],) * 1000)
    deep: object = 1
    for _ in range(100_000):
        deep = (deep,)
    with pytest.raises(ValueError, match="deep"):
        check_depth(deep)


def test_what_is_no_json():
    with pytest.raises(ValueError, match="Expecting value"):
        parse("x")
