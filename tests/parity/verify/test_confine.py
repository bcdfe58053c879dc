"""What a port cannot do: it tries, and says so in the only way that it has, an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from parity.verify.build import PORT
from parity.verify.run import Limits, UnjudgeableError, ask

linux = pytest.mark.skipif(sys.platform != "linux", reason="Landlock and seccomp are of Linux")

META = {"weights": {}, "aliases": {}, "trained": [], "ledger": None, "gradients": False, "narrow": [], "scalars": []}


def said(code: str, **options: object) -> str:
    """Return the error with which a port's file ends."""
    with pytest.raises(UnjudgeableError) as caught:
        ask("build", {**META, "trials": []}, {}, Limits(seconds=60), files={PORT: code.encode()}, **options)  # type: ignore[arg-type]
    return str(caught.value)


ATTEMPTS = """
import os, sys, ctypes, socket, pathlib
done = []
def attempt(name, action):
    try:
        action()
        done.append(name)
    except BaseException:
        pass
libc = ctypes.CDLL(None, use_errno=True)
def raw(result):
    if result < 0:
        raise OSError
attempt("torch", lambda: __import__("torch"))
attempt("secret", lambda: open({secret!r}).read())
attempt("list", lambda: os.listdir(os.path.dirname({secret!r})))
attempt("parents", lambda: [os.listdir(p) for p in pathlib.Path(os.getcwd()).parents])
attempt("environ", lambda: open(f"/proc/{{os.getppid()}}/environ").read())
attempt("memory", lambda: open(f"/proc/{{os.getppid()}}/mem", "rb"))
attempt("write", lambda: open("x", "w"))
attempt("write /tmp", lambda: open("/tmp/parity-forged", "w"))
attempt("fork", lambda: os.fork())
attempt("raw fork", lambda: raw(libc.fork()))
attempt("exec", lambda: raw(libc.execv(b"/bin/true", None)))
attempt("socket", lambda: raw(libc.socket(2, 1, 0)))
attempt("kill", lambda: raw(libc.kill(os.getppid(), 0)))
attempt("ptrace", lambda: raw(libc.ptrace(16, os.getppid(), None, None)))
attempt("unshare", lambda: raw(libc.unshare(0x10000000)))
attempt("limits", lambda: __import__("resource").setrlimit(0, (10**6, 10**6)))
attempt("key", lambda: done.append(os.environ["PARITY_KEY"]))
raise ValueError("done: " + ", ".join(done) + " in " + repr(os.listdir(".")))
"""


@linux
def test_a_port_has_nothing_but_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PARITY_KEY", "sesame")
    secret = tmp_path / "spec.py"
    secret.write_text("secret")
    assert said(ATTEMPTS.format(secret=str(secret))) == "ValueError: done: in []"
    assert not Path("/tmp/parity-forged").exists()


def test_jax_is_there_and_torch_is_not():
    libraries = "import jax, flax, equinox, haiku, optax\n"
    found = said(libraries + "try:\n    import torch\nexcept ImportError as e:\n    raise ValueError(e)")
    assert "runs without torch" in found


def test_the_line_of_an_error_is_known():
    with pytest.raises(UnjudgeableError) as caught:
        ask("build", {**META, "trials": []}, {}, Limits(seconds=60), files={PORT: b"x = 1\n\nx.y\n"})
    assert caught.value.line == 3


def test_no_process_is_left(tmp_path: Path):
    code = "import os, time\nraise ValueError(os.getpid())"
    number = int(said(code).removeprefix("ValueError: "))
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
