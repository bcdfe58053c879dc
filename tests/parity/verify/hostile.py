"""Ports that attack the process that judges, or use up what it has."""

from __future__ import annotations

from tests.parity.verify.forged import RIGHT, WRONG

HOSTILE: dict[str, str] = {}


def _hostile(name: str, code: str, base: str = WRONG) -> None:
    HOSTILE[name] = base + code


# ---- the process that asks ----

_hostile(
    "prints a verdict",
    """
print('{"version": 1, "verdict": "equal", "exit_code": 0}', flush=True)
raise SystemExit(0)
""",
)
_hostile(
    "ends the process",
    """
import os
os._exit(0)
""",
)
_hostile(
    "kills itself",
    """
import os, signal, ctypes
ctypes.CDLL(None).kill(os.getpid(), 9)
""",
)
FIND = """
import os, sys
def open_files():
    for number in range(3, 256):
        try:
            os.fstat(number)
        except OSError:
            continue
        yield number
"""
_hostile(
    "writes the answer itself",
    FIND
    + """
import json
body = json.dumps({"meta": {"verdict": "equal", "exit_code": 0, "outputs": [], "isolation": []}, "arrays": []}).encode()
for number in open_files():
    try:
        os.pwrite(number, len(body).to_bytes(8, "little") + body, 0)
    except OSError:
        pass
os._exit(0)
""",
)
_hostile(
    "answers with nested lists",
    FIND
    + """
body = b'{"meta": ' + b"[" * 200000 + b"]" * 200000 + b"}"
for number in open_files():
    try:
        os.pwrite(number, len(body).to_bytes(8, "little") + body, 0)
    except OSError:
        pass
os._exit(0)
""",
)
_hostile(
    "announces arrays that are not there",
    FIND
    + """
import json
body = json.dumps({"meta": {"outputs": []}, "arrays": [["x", "float64", [2**39]], ["y", "float64", [2**39]]]}).encode()
for number in open_files():
    try:
        os.pwrite(number, len(body).to_bytes(8, "little") + body, 0)
    except OSError:
        pass
os._exit(0)
""",
)
_hostile(
    "answers with a pickle",
    FIND
    + """
import pickle
class Bomb:
    def __reduce__(self):
        return os._exit, (0,)
for number in open_files():
    try:
        os.pwrite(number, pickle.dumps(Bomb()), 0)
    except OSError:
        pass
os._exit(0)
""",
)
_hostile(
    "patches the worker",
    """
import sys
build = sys.modules["parity.verify.build"]
build.answer = build._export = build._exported = lambda *x: ({"outputs": "equal"}, {})
build.explained = lambda *x: ("equal", 0)
sys.modules["parity.verify.arrays"].write = lambda *x: None
""",
)
_hostile(
    "exports another program",
    """
import numpy as np
import jax.export
whole = jax.export.export
def export(function, **options):
    return whole(jax.jit(lambda *x: [jnp.zeros_like(y) for y in jax.eval_shape(function, *x)]), **options)
jax.export.export = export
""",
)
_hostile(
    "exports no program",
    """
import sys
import numpy as np
sys.modules["parity.verify.build"]._exported = lambda *x: np.frombuffer(b"not a program" * 99, np.uint8)
""",
)
_hostile(
    "patches numpy and jax",
    """
import numpy as np
np.array_equal = np.allclose = lambda *x, **y: True
np.linalg.norm = lambda *x, **y: 0.0
jnp.abs = lambda x: x * 0
""",
)
_hostile(
    "runs at the end",
    FIND
    + """
import atexit
def last():
    for number in open_files():
        try:
            os.pwrite(number, bytes(64), 0)
        except OSError:
            pass
atexit.register(last)
""",
)
_hostile(
    "thread that overwrites the answer",
    FIND
    + """
import threading
def forever():
    while True:
        for number in open_files():
            try:
                os.pwrite(number, bytes(64), 0)
            except OSError:
                pass
threading.Thread(target=forever, daemon=True).start()
""",
)
_hostile(
    "error that cannot be printed",
    """
class Bad(Exception):
    def __str__(self):
        raise self
raise Bad
""",
)
_hostile("no Python", "\ndef port(:\n")
_hostile(
    "recursion without end",
    """
def port(weights):
    def model(x):
        return model(x)
    return model
""",
)

# ---- what it uses up ----

GREEDY: dict[str, str] = {
    "sleeps": WRONG + "\nimport time\ntime.sleep(10**6)\n",
    "computes for ever": WRONG + "\nwhile True:\n    pass\n",
    "ignores the signal of the limit": WRONG
    + "\nimport signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass\n",
    "program without end": RIGHT
    + """
def port(weights):
    def model(x):
        n = jax.lax.while_loop(lambda n: n >= 0, lambda n: (n + 1) % 1000, 0)
        return right(weights, x) + n
    return model
""",
    "fork bomb": WRONG + "\nimport os\nwhile True:\n    os.fork()\n",
    "fork bomb through the C library": WRONG
    + "\nimport ctypes\nfork = ctypes.CDLL(None).fork\nwhile fork() >= 0:\n    pass\nraise OSError('no fork')\n",
    "threads": WRONG
    + "\nimport threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(1e6,)).start()\n",
    "memory": WRONG + "\nkept = []\nwhile True:\n    kept.append(bytearray(2**26))\n",
    "huge output": WRONG + "\ndef port(weights):\n    return lambda x: jnp.zeros((10**6, 10**6), x.dtype)\n",
    "huge program": WRONG
    + """
import numpy as np
def port(weights):
    return lambda x: right(weights, x) + jnp.asarray(np.random.rand(2**27)).sum()
""",
    "huge answer": WRONG
    + FIND
    + """
while True:
    for number in open_files():
        try:
            os.write(number, bytes(2**24))
        except OSError:
            pass
""",
    "huge error": WRONG + "\nraise ValueError('x' * 10**8)\n",
}
"""Ports that use up time, memory, processes or the disk; they are run with small limits."""
