"""Readers with a fault each, that a campaign has to find."""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tools.reliability.fuzzing.reader import Reader

SAMPLE = b"sample"


def planted(fault: Callable[[Path], object], seconds: float = Reader.seconds) -> Reader:
    """Reads its sample as it is; whatever differs from it meets the fault.

    Only what hangs gets few seconds: a busy machine may take one of them to fill the memory of another fault.
    """

    def read(folder: Path) -> object:
        path = folder / "file.bin"
        return None if path.read_bytes() == SAMPLE else fault(path)

    return Reader(
        lambda: [{"file.bin": SAMPLE}], lambda tree, rng: {"file.bin": SAMPLE + rng.randbytes(2)}, read, seconds=seconds
    )


def _fail(error: Exception) -> Callable[[Path], object]:
    def fault(path: Path) -> object:
        raise error

    return fault


def _burn(path: Path) -> None:
    while True:
        pass


def _fill(path: Path) -> int:
    return len(b"x" * (400 << 20))


def _run_hidden(path: Path) -> None:
    try:
        subprocess.run(["true"], check=False)
    except Exception as error:
        raise ValueError(f"{path} is damaged") from error


def _named(path: Path) -> object:
    raise ValueError(f"{path} is damaged: get another copy")


def well() -> Reader:
    return planted(_named)


def undocumented() -> Reader:
    return planted(_fail(KeyError("x")))


def nameless() -> Reader:
    return planted(_fail(ValueError("it is damaged")))


def crash() -> Reader:
    return planted(lambda path: ctypes.string_at(0))


def hang() -> Reader:
    return planted(_burn, seconds=1)


def sleep() -> Reader:
    return planted(lambda path: time.sleep(1000), seconds=1)


def blow_up() -> Reader:
    return planted(_fill)


def escape() -> Reader:
    return planted(lambda path: (path.parents[1] / "outside" / "escaped").write_bytes(b"x"))


def escape_far() -> Reader:
    return planted(lambda path: Path("/tmp/t2t-fuzz-escaped").write_bytes(b"x"))


def change() -> Reader:
    return planted(lambda path: path.write_bytes(b"other"))


def change_a_class() -> Reader:
    return planted(lambda path: setattr(argparse.Namespace, "planted", path))


def run_code() -> Reader:
    return planted(lambda path: os.system("true"))


def run_hidden() -> Reader:
    return planted(_run_hidden)
