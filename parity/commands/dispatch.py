"""`python -m parity COMMAND`: list the commands, or run one.

A command is a function `main(args, prog) -> int` that imports what is slow when it runs: to list the commands takes no
framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parity.commands import check, doctor, installed, mcp, power, report, verify
from parity.commands.options import did_you_mean
from parity.commands.process import OK, complain, restore_ctrl_c
from parity.requirements import DISTRIBUTION, complaint, missing, version

PROG = "python -m parity"

OWN: dict[str, Callable[[Sequence[str], str], int]] = {
    "check": check.main,
    "power": power.main,
    "verify": verify.main,
    "mcp": mcp.main,
    "report": report.main,
    "doctor": doctor.main,
}


def main(args: Sequence[str]) -> int:
    """List the commands, or run the one that `args` begins with; return the exit code.

    Raises:
        ValueError: The command does not exist, or its arguments make no sense.
    """
    if "--version" in args:
        print(f"{DISTRIBUTION} {version()}")
        return OK
    known = OWN | {name: command for name, command in installed.commands().items() if name not in OWN}
    if not args or args[0] in ("-h", "--help"):
        print(listing(known))
        return OK
    name, *rest = args
    if name not in known:
        choices = did_you_mean(name, known) or f": choose one of {', '.join(known)}"
        raise ValueError(f"no command {name!r}{choices} (see {PROG} --help)")
    if lacking := missing():
        return complain(complaint(lacking))
    if name not in OWN:
        restore_ctrl_c()  # it ends in its own way
    return known[name](rest, f"{PROG} {name}")


def listing(commands: dict[str, Callable[[Sequence[str], str], int]]) -> str:
    """Return the list of the commands, each with the first line of its docstring."""
    width = max(map(len, commands))
    rows = [f"  {name:<{width}}  {(main.__doc__ or '').partition(chr(10))[0]}" for name, main in commands.items()]
    what = "Check that a PyTorch model and its JAX port are equivalent."
    codes = "Exit codes: 0 every check passes, 1 a check fails, 2 invalid arguments."
    call = f"{PROG} COMMAND --help shows the options of one."
    return "\n".join([f"usage: {PROG} [-h] COMMAND [OPTIONS]", "", what, codes, "", *rows, "", call])
