"""`python -m parity doctor`: settings and defaults that make the frameworks differ."""

from __future__ import annotations

from collections.abc import Sequence

from parity.commands.options import Parser
from parity.commands.show import make_console


def main(args: Sequence[str], prog: str) -> int:
    """Show settings that affect numerical results, and measure defaults that differ between the frameworks."""
    Parser(prog, main.__doc__ or "").parse_args(args)
    from parity.doctor import doctor

    doctor(make_console())
    return 0
