import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.programs import HOSTILE, ORDINARY


RUN = Path(__file__).with_name("hostile") / "run.py"
NOBODY = 65534
# The user `nobody`. If only root may read the Python installation, `nobody` also gets the right to read files.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
AS_READER = [*AS_NOBODY[:-1]] + [
    f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
]
# Where Monty, in the engine "auto", has another result: it has no environment and no such module to tamper with.
IN_AUTO = {
    "environment: dump the environment": ("error",),
    "loops: regular expression": ("ok",),
    "traps: math": ("error",),
    "values: list of itself": ("ok",),
}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the jail needs Linux")


def unprivileged():
    if os.getuid() != 0:
        pytest.skip("only root can become another user; the tests run unprivileged as they are")
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv of util-linux")
    # `setpriv` may be able to start a Python that cannot start another one as that user.
    code = "import md_trl, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    for prefix in (AS_NOBODY, AS_READER):
        if subprocess.run([*prefix, sys.executable, "-c", code], cwd="/", capture_output=True).returncode == 0:
            return prefix
    pytest.skip("another user may not run this Python")


def run(engine, setting):
    prefix = unprivileged() if setting == "unprivileged" else []
    command = [*prefix, sys.executable, str(RUN), engine, "no unshare" if setting == "no unshare" else "as is"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux_only
class TestHostile:
    # Every engine and every setting once. The other pairs are slow.
    @pytest.mark.parametrize(
        ("engine", "setting"),
        [
            ("jail", "as is"),
            ("auto", "unprivileged"),
            pytest.param("jail", "unprivileged", marks=pytest.mark.slow),
            ("jail", "no unshare"),
            pytest.param("auto", "as is", marks=pytest.mark.slow),
            pytest.param("auto", "no unshare", marks=pytest.mark.slow),
            pytest.param("monty", "as is", marks=pytest.mark.slow),
        ],
    )
    def test_the_host_is_untouched_and_every_result_is_clean(self, engine, setting):
        report = run(engine, setting)
        assert report["uid"] == (NOBODY if setting == "unprivileged" else os.getuid())
        assert report["leaks"] == []
        assert report["signals"] == []
        assert not report["connected"]
        assert report["files"] == ["canary"] and report["canary"]
        assert report["children"] == []
        assert len(report["hostile"]) == len(HOSTILE) >= 100

        unexpected = {}
        for name, (status, value, error, seconds, by) in report["hostile"].items():
            expected = HOSTILE[name][1]
            expected = (expected,) if isinstance(expected, str) else expected
            if by == "monty":
                expected = IN_AUTO.get(name, expected)
            if engine != "monty":  # on a busy machine the time limit may come first
                expected = (*expected, "timeout")
            clean = (status == "ok") == (error is None) and (status == "ok" or value == "None")
            if not clean or (engine != "monty" and status not in expected):
                unexpected[name] = (status, value, error, seconds, by)
        assert unexpected == {}

        assert report["ordinary"] >= 200
        if engine != "monty":  # Monty alone has no numpy and no yield, and reports it
            assert report["wrong"] == []

    def test_there_are_several_kinds_of_ordinary_programs(self):
        assert len(ORDINARY) >= 5
