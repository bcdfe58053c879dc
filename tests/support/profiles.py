"""How many examples a property gets: few and always the same in the suite, many and new ones in the campaign.

`pytest --hypothesis-profile=long` runs the long form of any property, `python -m tools.reliability.properties` of all.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

SHORT = 100
"""Examples of a cheap property in the suite."""

_SLOW_DRAWS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def register() -> None:
    """The profiles "short" (the default) and "long"; a busy machine fails neither."""
    settings.register_profile("short", derandomize=True, database=None, deadline=None, max_examples=SHORT)
    settings.register_profile(
        "long",
        database=None,
        deadline=None,
        max_examples=10 * SHORT,
        print_blob=True,
        suppress_health_check=_SLOW_DRAWS,
    )
    settings.load_profile("short")


def examples(short: int) -> settings:
    """Of a property whose examples take long: `short` of them in the suite, and as many times more in the long form."""
    return settings(max_examples=max(1, short * settings().max_examples // SHORT))
