"""What the machine is, as far as it explains a number. No host name, no path, nothing of its user."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import torch_bnb

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve", "sve2")


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpuinfo(key: str) -> str:
    found = re.search(rf"^{key}\s*:\s*(.*)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    return found[1] if found else ""


def _processor() -> str:
    """Its name; with family and model where a hypervisor has taken the number away: generations differ by half."""
    name, family = _cpuinfo("model name") or platform.processor() or platform.machine(), _cpuinfo("cpu family")
    return name if re.search(r"\d", name) or not family else f"{name} (family {family}, model {_cpuinfo('model')})"


def memory(key: str) -> int | None:
    """Bytes, of ``MemTotal`` or ``MemAvailable``; None where the system does not say."""
    found = re.search(rf"^{key}:\s*(\d+) kB$", _read("/proc/meminfo"), flags=re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_level_cache() -> int | None:
    """Bytes of all caches of the highest level together; None where the system does not say."""
    sizes: dict[tuple[int, str], int] = {}
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        level, size = _read(f"{cache}/level"), re.fullmatch(r"(\d+)K", _read(f"{cache}/size"))
        if level and size:
            sizes[int(level), _read(f"{cache}/shared_cpu_list")] = 1024 * int(size[1])
    highest = max((level for level, _ in sizes), default=None)
    return sum(size for (level, _), size in sizes.items() if level == highest) or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the program's own repository, with a + where files differ from it."""
    where = Path(__file__).parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def describe() -> dict[str, Any]:
    """Everything that a reader of a result needs to know of the machine, as plain data."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86, ARM
    return {
        "cpu": _processor(),
        "architecture": platform.machine(),
        "cpus": cpus(),
        "instruction sets": [name for name in INSTRUCTION_SETS if name in flags],
        "forced instruction set": os.environ.get("TORCH_BNB_ISA"),
        "last-level cache": last_level_cache(),
        "memory": memory("MemTotal"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "torch instruction set": torch.backends.cpu.get_cpu_capability(),
        "torch_bnb": torch_bnb.__version__,
        "commit": _commit(),
        "peers": {name: _version(name) for name in ("bitsandbytes", "torchao", "deepspeed")},
    }


def busy(machine: dict[str, Any]) -> bool:
    """Whether other programs took a good part of a processor when the machine was described."""
    return (machine["load average"] or 0) > 0.5


def slug(machine: dict[str, Any]) -> str:
    """A name for files: the processor and how many of them, ``amd-epyc-7b13-x8``."""
    name = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*|\d+-core", " ", machine["cpu"].lower())
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-x{machine['cpus']}"


def one_line(machine: dict[str, Any]) -> str:
    """The machine in a caption."""
    parts = [f"{machine['cpu']}, {machine['cpus']} CPUs", f"{machine['torch instruction set']}"]
    if machine["memory"]:
        parts.append(f"{machine['memory'] / 2**30:.0f} GiB")
    return ", ".join([*parts, f"torch {machine['torch']}", f"Python {machine['python']}"])
