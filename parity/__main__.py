"""`python -m parity`: the command line. Exit codes: 0 every check passes, 1 a check fails, 2 invalid arguments."""

from parity.commands.dispatch import main
from parity.commands.process import run_and_end

if __name__ == "__main__":
    run_and_end(main)
