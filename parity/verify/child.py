"""The process that runs what nobody trusts: `parity.verify.run` starts Python with `serve(role, result, request)`.

It gives up its rights before anything else is imported, then calls `parity.verify.ROLE.answer(meta, arrays)`, and
writes what that returns to an open file. Only the standard library is imported here before that.
"""

import importlib
import json
import os
import sys
import tempfile
from typing import Any


def serve(role: str, result: str, request: str) -> None:
    """Answer the request in the file `request`; `result` is the number of the open file for the answer."""
    with open(request, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        asked: dict[str, Any] = json.loads(file.read(length))["meta"]
        sys.path[:0] = [asked["library"]]
        tempfile.tempdir = os.getcwd()  # libraries ask for its name; nobody can write there
        confinement = importlib.import_module("parity.verify.confine")
        held = confinement.confine(**asked["confinement"])
        arrays = importlib.import_module("parity.verify.arrays")
        file.seek(0)
        _, given = arrays.read(file)
    answer, found = importlib.import_module(f"parity.verify.{role}").answer(asked, given)
    with os.fdopen(int(result), "wb") as file:
        arrays.write(file, {**answer, "isolation": held}, found)
        file.flush()
    os._exit(0)  # whatever the port has left to run at the end
