"""Run hostile programs mixed with ordinary ones and print a report as JSON: `run.py ENGINE SETTING`.

SETTING is `as is` or `no unshare`. With `no unshare`, a seccomp filter forbids this process and its children to create
namespaces.
"""

import ctypes
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path

from programs import HOSTILE, ORDINARY

from md_trl.execution import Executor, Limits


SECRET = "the-secret-of-the-host"
REPEATS = 30


def refuse_unshare():
    number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
    assert libc.unshare(0x04000000) == -1


def main(engine, setting):
    if setting == "no unshare":
        refuse_unshare()
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGIO, signal.SIGALRM):
        signal.signal(number, lambda number, frame: signals.append(number))
    os.environ["MD_SECRET"] = SECRET
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        os.chmod(folder, 0o777)
        canary = Path(folder, "canary")
        canary.write_text(SECRET)
        fd = os.open(canary, os.O_RDONLY)
        os.set_inheritable(fd, True)
        names = {
            "canary": canary,
            "folder": folder,
            "port": listener.getsockname()[1],
            "host": os.getpid(),
            "fd": fd,
        }
        texts = {name: program.format(**names) for name, (program, _) in HOSTILE.items()}
        ordinary = {program.format(n=n): expected(n) for n in range(REPEATS) for program, expected in ORDINARY.items()}
        order = [*texts.values(), *ordinary]
        random.Random(0).shuffle(order)
        with Executor(engine=engine, limits=Limits(seconds=1.0)) as executor:
            results = dict(zip(order, executor.run_many(order), strict=True))
        listener.settimeout(0)
        try:
            listener.accept()
            connected = True
        except BlockingIOError:
            connected = False
        report = {
            "uid": os.getuid(),
            "hostile": {
                name: [result.status, repr(result.value)[:200], result.error, result.seconds, result.engine]
                for name, result in ((name, results[text]) for name, text in texts.items())
            },
            "leaks": [name for name, text in texts.items() if SECRET in repr(results[text])],
            "wrong": [
                [text, repr(results[text])] for text, expected in ordinary.items() if results[text].value != expected
            ],
            "ordinary": len(ordinary),
            "signals": signals,
            "connected": connected,
            "files": sorted(file.name for file in Path(folder).iterdir()),
            "canary": canary.read_text() == SECRET and canary.stat().st_nlink == 1,
            "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
