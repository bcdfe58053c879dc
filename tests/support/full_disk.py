"""Code that finds the disk full."""

from __future__ import annotations

import subprocess
import sys

FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write beyond the limit raises OSError, as on a full disk
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
"""
SPACIOUS = "resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # for what measures which lines run"


def on_full_disk(before: str, then: str) -> str:
    """The ValueError that `then` raises, without a traceback, where no more than 4096 bytes can be written to a file.

    It runs in a process of its own; `before` runs there too, while files may still have any size.
    """
    body = "".join(f"    {line}\n" for line in then.strip().splitlines())
    code = f"{before}\n{FULL}\ntry:\n{body}except ValueError as error:\n    print(error)\n{SPACIOUS}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
