"""What a process gives up before it runs code that nobody trusts. Only the standard library is imported here.

No privilege is needed, and whoever runs as root gives that up too. Every measure is tried, and `confine` returns the
names of those that hold:

- "limits": CPU time, memory, sizes of files (`setrlimit`); the process ends with its parent.
- "files" (Linux 5.13, Landlock): only the given files and folders can be opened, none for writing; no program can be
  started; no process outside can be traced. "network" (6.7): no TCP. "signals" (6.12): none to processes outside.
- "processes" (Linux on x86-64 and ARM64, seccomp): no fork, no new program, no socket, no ptrace, no io_uring.
- "imports": the given modules cannot be imported, and Python refuses to start processes and connections. Python code
  can undo this: it is for systems that have nothing else.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38


def confine(seconds: int, memory: int, size: int, readable: Sequence[str], blocked: Collection[str]) -> list[str]:
    """Give up what a port does not need, for ever; return the measures that hold.

    Args:
        seconds: CPU time.
        memory: Address space in bytes.
        size: The largest file in bytes.
        readable: The files and folders that can still be read.
        blocked: Top-level modules that can no longer be imported.
    """
    held = []
    if _limits(seconds, memory, size):
        held.append("limits")
    _block(blocked)
    held.append("imports")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        held += _landlock(libc, readable)
        libc.capset(struct.pack("<II", 0x20080522, 0), bytes(24))  # of root: all capabilities
        if _seccomp(libc):
            held.append("processes")
    return held


def _limits(seconds: int, memory: int, size: int) -> bool:
    try:
        import resource  # not on Windows
    except ImportError:
        return False
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ValueError, OSError):  # macOS has no limit of the address space
        return False
    return True


# ---- Python ----

REFUSED = frozenset(
    [
        *("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "pty.spawn"),
        *("os.kill", "os.killpg", "socket.connect", "socket.bind"),
    ]
)
"""Audit events of what a port has no need for."""


class _Blocked:
    """Finder that finds no blocked module."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"a port runs without {name}", name=name)


def _block(names: Collection[str]) -> None:
    sys.meta_path.insert(0, _Blocked(names))  # type: ignore[arg-type]

    def refuse(event: str, args: Any, refused: frozenset[str] = REFUSED) -> None:
        if event in refused:
            raise PermissionError(f"a port may not do this: {event}")

    sys.addaudithook(refuse)


# ---- Landlock ----

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Version of Landlock -> all rights that it has for files."""

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, with the same numbers on every machine."""


def _landlock(libc: Any, readable: Sequence[str]) -> list[str]:
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return []
    rights = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= version)]
    wanted = struct.pack("<QQQ", rights, 3, 3)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = libc.syscall(CREATE_RULESET, wanted, ctypes.c_size_t(len(wanted)), 0)
    if rules < 0:
        return []
    for path in readable:
        try:
            place = os.open(path, os.O_PATH)
        except OSError:
            continue
        allowed = READ_FILE | READ_DIR if Path(path).is_dir() else READ_FILE
        libc.syscall(ADD_RULE, rules, 1, struct.pack("<Qi", allowed, place), 0)
        os.close(place)
    done = libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)
    if done != 0:
        return []
    return ["files"] + ["network"] * (version >= 4) + ["signals"] * (version >= 6)


# ---- seccomp ----

NUMBERS = {
    # machine: (AUDIT_ARCH, clone, clone3, refused: fork, vfork, execve, execveat, ptrace, process_vm_readv and _writev,
    # socket, socketpair, io_uring_setup, bpf, userfaultfd, perf_event_open, keyctl, mount, unshare, setns)
    "x86_64": (
        0xC000003E,
        56,
        435,
        (57, 58, 59, 322, 101, 310, 311, 41, 53, 425, 321, 323, 298, 250, 165, 272, 308),
    ),
    "aarch64": (0xC00000B7, 220, 435, (221, 281, 117, 270, 271, 198, 199, 425, 280, 282, 241, 219, 40, 97, 268)),
}
"""Numbers of system calls by machine."""

THREAD = 0x00010000
"""Flag of clone: the new one is a thread of this process."""

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
"""What a filter returns: allow the call, or let it fail with this error."""

LOAD, EQUAL, SET, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06


def _seccomp(libc: Any) -> bool:
    """Let every system call fail that makes a process, a socket, or a door into another process."""
    known = NUMBERS.get(platform.machine())
    if known is None:
        return False
    arch, clone, clone3, refused = known
    steps: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, 4),  # the architecture
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, EPERM),
        (LOAD, 0, 0, 0),  # the number of the call
        (AT_LEAST, 0, 1, 0x40000000),  # x32 has other numbers
        (RETURN, 0, 0, EPERM),
        (EQUAL, 0, 1, clone3),  # its flags are in memory: the C library goes back to clone
        (RETURN, 0, 0, ENOSYS),
        (EQUAL, 0, 4, clone),
        (LOAD, 0, 0, 16),  # the flags of clone
        (SET, 0, 1, THREAD),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]
    for number in refused:
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    steps.append((RETURN, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    program = Program(len(steps), ctypes.cast(code, ctypes.c_void_p))
    return libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0
