"""Use seccomp to block every system call that computation does not need.

After [`confine`] the kernel refuses all system calls but those listed here, for the calling process and its children,
and this cannot be undone: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html

The jail's own process imports this file without the rest of the package, so it needs the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys


# Numbers from asm/unistd.h, (x86_64, aarch64). Everything else is refused: open, socket, clone, exec, kill, ptrace,
# ioctl, fcntl, prctl, prlimit, memfd_create, io_uring, ...
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}
# Allowed unless they make memory executable.
_ALLOWED_WITHOUT_EXEC = {"mmap": (9, 222), "mprotect": (10, 226)}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_PROT_EXEC = 4
# Offsets in `struct seccomp_data` of the call's number, the architecture and the low half of the third argument.
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def unavailable_reason() -> str | None:
    """Return why this platform has no filter, or `None` if it has one. The kernel may still refuse it."""
    if sys.platform != "linux":
        return f"there is no seccomp on {sys.platform}"
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        return f"there is no list of system calls for {platform.machine()}"
    return None


def _instructions() -> bytes:
    column, architecture = _MACHINES[platform.machine()]

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    program = [
        instruction(_LOAD, _ARCHITECTURE),
        instruction(_JUMP_EQUAL, architecture, 1, 0),
        instruction(_RETURN, _KILL),
        instruction(_LOAD, _NUMBER),
    ]
    for number in (numbers[column] for numbers in _ALLOWED.values()):
        if number is not None:
            program += [instruction(_JUMP_EQUAL, number, 0, 1), instruction(_RETURN, _ALLOW)]
    for number in (numbers[column] for numbers in _ALLOWED_WITHOUT_EXEC.values()):
        program += [
            instruction(_JUMP_EQUAL, number, 0, 4),
            instruction(_LOAD, _THIRD_ARGUMENT),
            instruction(_JUMP_ANY_BIT, _PROT_EXEC, 1, 0),
            instruction(_RETURN, _ALLOW),
            instruction(_RETURN, _ERRNO | errno.EPERM),
        ]
    program.append(instruction(_RETURN, _ERRNO | errno.EPERM))
    return b"".join(program)


if unavailable_reason() is None:
    # Built once, before anything is confined; forks share it.
    _CODE = _instructions()
    _FILTER = _Program(len(_CODE) // 8, _CODE)
    _PRCTL = ctypes.CDLL(None, use_errno=True).prctl
    _PRCTL.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def confine() -> None:
    r"""
    Restrict the calling thread to the allowed system calls, irrevocably.

    Raises:
        `OSError`: If the kernel refuses the filter. The thread is then not restricted.
    """
    if _PRCTL(_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "PR_SET_NO_NEW_PRIVS")
    if _PRCTL(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(_FILTER), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "PR_SET_SECCOMP")


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends."""
    _PRCTL(1, 9, None, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
