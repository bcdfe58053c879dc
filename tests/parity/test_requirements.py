"""What `import parity` says where something is missing; the rest is in tests/config/test_extras.py."""

from __future__ import annotations

from parity.requirements import explanation


def test_a_module_of_an_extra_is_explained_and_any_other_error_stays():
    error = ModuleNotFoundError("No module named 'flax'", name="flax")
    found = explanation(error)
    assert not isinstance(found, ModuleNotFoundError)
    assert found.name == "flax"
    assert 'pip install -e ".[parity]"' in str(found)
    other = ModuleNotFoundError("No module named 'mine'", name="mine")
    assert explanation(other) is other
