"""The machine and the installed versions, for bug reports: no secrets, no paths, no environment variables."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from . import __version__
from .errors import InputError
from .execution import Executor


IMPORTED_AS = {"monty": "pydantic-monty", "yaml": "pyyaml"}
"""Distributions that are imported under another name."""


def dependencies() -> dict[str, str | None]:
    """Return the packages that md_trl can use, each with the extra that brings it, `None` for a required one."""
    found: dict[str, str | None] = {}
    for requirement in requires("md_trl") or ():
        name = re.match(r"[\w.-]+", requirement).group().lower().replace("_", "-")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if extra is None or name not in found or found[name] == "dev":
            found[name] = extra and extra[1]
    return found


def how_to_install(module: str) -> str:
    r"""
    Say how to install what an import missed.

    Args:
        module (`str`):
            Name of the module that was not found.

    Returns:
        `str`: The command, with the extra of md_trl that brings the module if there is one.
    """
    top = module.partition(".")[0]
    name = IMPORTED_AS.get(top, top).lower().replace("_", "-")
    try:
        extra = dependencies().get(name)
    except PackageNotFoundError:  # a checkout that was not installed
        extra = None
    package = f'"md_trl[{extra}]"' if extra else name
    return f"Install it: pip install {package}"


def describe_environment() -> str:
    """Describe the machine and the installed versions as a Markdown list."""
    lines = [
        f"md_trl: {__version__}",
        f"Python: {platform.python_version()} ({platform.python_implementation()})",
        f"platform: {platform.platform()}",
        f"CPU: {_cpu()}, {os.cpu_count()} cores",
        f"memory: {_memory()}",
        f"accelerator: {_accelerator()}",
        *(f"sandbox engine `{engine}`: {_sandbox(engine)}" for engine in ("monty", "jail")),
        *(f"{name}: {_version(name)}" for name in sorted(_packages())),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _packages() -> set[str]:
    try:
        return {name for name, extra in dependencies().items() if extra != "dev"}
    except PackageNotFoundError:
        return {"torch", "trl", "transformers", "datasets", "peft", "accelerate"}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return (names and names[0]) or platform.processor() or platform.machine()


def _memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().total / 2**30:.1f} GiB"


def _accelerator() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken build is what a bug report should say
        return f"unknown, torch cannot be imported ({type(error).__name__})"
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
        return f"{names}, CUDA {torch.version.cuda or torch.version.hip}"
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "none"


def _sandbox(engine: str) -> str:
    """Run a program, since whether an engine works depends on the kernel and on what a container allows."""
    try:
        with Executor(engine=engine) as executor:
            [result] = executor.run_many(["answer = 6 * 7"])
    except (InputError, OSError, ImportError, RuntimeError) as error:
        return f"does not work ({type(error).__name__})"
    return "works" if result.value == 42 else f"does not work ({result.status})"
