"""The commands that this project adds to `python -m parity` (entry points `parity.commands` in pyproject.toml).

Each imports its module when it runs, so that `python -m parity --help` imports no framework.
"""

from __future__ import annotations

from collections.abc import Sequence

from t2t_config.extras import check_command


def convert(args: Sequence[str], prog: str) -> int:
    """Convert weights between .pth, .pth.tar, .safetensors and an Orbax folder, in any direction."""
    check_command("t2t_parity")
    from t2t_parity.convert_command import main

    return main(args, prog)


def train(args: Sequence[str], prog: str) -> int:
    """Check that training is the same in PyTorch and in JAX: optimizer, schedule, decay, average, every step."""
    check_command("t2t_parity")
    from t2t_parity.train_command import main

    return main(args, prog)


def selftest(args: Sequence[str], prog: str) -> int:
    """Check that the check can fail: every known mistake inserted into a correct pair must be detected."""
    check_command("t2t_parity")
    from t2t_parity.selftest_command import main

    return main(args, prog)


def survey(args: Sequence[str], prog: str) -> int:
    """Check every model of this project and write the results to a page such as docs/parity.md."""
    check_command("t2t_parity")
    from t2t_parity.survey_command import main

    return main(args, prog)
