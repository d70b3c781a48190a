"""`genseg doctor`: can this machine train, on what, and how well, in plain words."""

import ctypes
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from genseg.versions import library_versions

GIB = 2**30
_ENOUGH_MEMORY, _ENOUGH_DISK, _LEAST_DISK = 6 * GIB, 5 * GIB, 1 * GIB
Level = Literal["good", "note", "problem"]


class Finding(BaseModel):
    """One thing looked at: what was found, how good that is, and what it means for the user."""

    name: str
    level: Level
    value: str
    meaning: str = ""


class Device(BaseModel):
    """A device torch can use; memory in bytes; `bf16_speedup` is measured against float32."""

    id: str
    name: str
    total_memory: int
    free_memory: int
    bf16: bool
    bf16_speedup: float | None = None


class Diagnosis(BaseModel):
    """Everything `genseg doctor --json` prints. Memory and disk in bytes."""

    usable: bool
    recommended_device: str | None
    python: str
    system: str
    cores: int
    total_memory: int
    free_memory: int
    free_disk: int
    devices: list[Device]
    versions: dict[str, str | None]
    findings: list[Finding]


def memory() -> tuple[int, int]:
    """(total, free) main memory in bytes; a container's limit counts where it is the smaller."""
    if sys.platform == "win32":
        return _windows_memory()
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = total
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = page * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # counts what the system's file cache would give back
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else free
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
        used = Path("/sys/fs/cgroup/memory.current")
        free = min(free, total - int(used.read_text())) if used.exists() else min(free, total)
    return total, free


def _windows_memory() -> tuple[int, int]:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("free", ctypes.c_ulonglong),
            ("rest", ctypes.c_ulonglong * 5),
        ]

    status = Status(length=ctypes.sizeof(Status))
    windows: Any = getattr(ctypes, "windll")  # noqa: B009  (exists on Windows alone)
    windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total), int(status.free)


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The processor as its maker names it, or at least its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def bf16_speedup(device: str) -> float | None:
    """How many times as fast a 3D convolution runs in bf16 as in float32; None where bf16 does not run."""
    import torch

    network = torch.nn.Conv3d(32, 32, 3, padding=1).to(device)
    scan = torch.rand(1, 32, 32, 32, 32, device=device)

    def seconds(dtype: "torch.dtype") -> float:
        best = float("inf")
        with torch.no_grad():
            weights, x = network.to(dtype), scan.to(dtype)
            for _ in range(4):  # the first warms up; where one takes this long, that no longer counts
                begin = time.perf_counter()
                float(weights(x).float().sum())  # reading the number waits for the device
                best = min(best, time.perf_counter() - begin)
                if best > 0.5:
                    break
        return best

    try:
        return float(f"{seconds(torch.float32) / seconds(torch.bfloat16):.2g}")
    except (RuntimeError, TypeError):
        return None


def _devices() -> list[Device]:
    import torch

    total, free = memory()
    kinds = []
    for index in range(torch.cuda.device_count()):
        card_free, card_total = torch.cuda.mem_get_info(index)
        kinds.append((f"cuda:{index}", torch.cuda.get_device_name(index), card_total, card_free))
    kinds.append(("cpu", processor_name(), total, free))
    if torch.backends.mps.is_available():  # last, because it is taken only by name: see find_device
        kinds.append(("mps", "Apple GPU", total, free))
    found = []
    for device, name, device_total, device_free in kinds:
        speedup = bf16_speedup(device)
        found.append(
            Device(
                id=device,
                name=name,
                total_memory=device_total,
                free_memory=device_free,
                bf16=speedup is not None,
                bf16_speedup=speedup,
            )
        )
    return found


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB"


def _library_findings(versions: dict[str, str | None]) -> list[Finding]:
    missing = [name for name, version in versions.items() if version is None]
    value = ", ".join(f"{name} {version}".strip() for name, version in versions.items() if version is not None)
    if not missing:
        return [Finding(name="Libraries", level="good", value=value)]
    meaning = f"Missing: {', '.join(missing)}. In Slicer the module's button installs them, elsewhere pip install does."
    return [Finding(name="Libraries", level="problem", value=value, meaning=meaning)]


def _device_findings(devices: list[Device]) -> list[Finding]:
    found = []
    for device in devices:
        speed = "no bf16" if not device.bf16 else f"bf16 runs {device.bf16_speedup} × as fast as float32"
        value = f"{device.name}, {_size(device.free_memory)} of {_size(device.total_memory)} free, {speed}"
        found.append(Finding(name=f"Device {device.id}", level="good", value=value))
    best = devices[0]
    if best.id == "cpu":
        found[0].level = "note"
        found[0].meaning = "Training will run on the processor: expect 5 to 30 minutes for small scans."
        if shutil.which("nvidia-smi"):
            found[0].meaning += (
                " There seems to be an NVIDIA GPU that this torch cannot use: install the CUDA build of torch"
                " (https://pytorch.org/get-started/locally) and a current driver."
            )
    else:
        found[0].meaning = "Training will run on this GPU."
    return found


def _memory_finding(total: int, free: int) -> Finding:
    value = f"{_size(free)} of {_size(total)} free"
    if free >= _ENOUGH_MEMORY:
        return Finding(name="Main memory", level="good", value=value)
    meaning = "Large volumes may not fit. Close other programs before training."
    return Finding(name="Main memory", level="note", value=value, meaning=meaning)


def _disk_findings(folder: Path, free: int) -> list[Finding]:
    value = f"{_size(free)} free in {folder}"
    if free < _LEAST_DISK:
        meaning = "Too little for a run. Free some space or work in another folder."
        disk = Finding(name="Disk", level="problem", value=value, meaning=meaning)
    elif free < _ENOUGH_DISK:
        disk = Finding(name="Disk", level="note", value=value, meaning="Enough for a few runs only.")
    else:
        disk = Finding(name="Disk", level="good", value=value)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return [disk, Finding(name="Write access", level="good", value=str(folder))]
    except OSError as refused:
        meaning = f"This folder cannot be written ({refused.strerror}). Give --out a folder of your own."
        return [disk, Finding(name="Write access", level="note", value=str(folder), meaning=meaning)]


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Look at this machine; `folder` (the current one) is where disk and write access are checked."""
    folder = (folder or Path.cwd()).resolve()
    versions = library_versions()
    python = f"{platform.python_version()}, {sys.executable}"
    findings = [Finding(name="Python", level="good", value=python), *_library_findings(versions)]
    devices: list[Device] = []
    try:
        devices = _devices()
        findings += _device_findings(devices)
    except Exception as broken:  # a broken torch fails in as many ways as there are drivers: report any of them
        meaning = "Torch does not work here. Install it again: https://pytorch.org/get-started/locally"
        findings.append(
            Finding(name="Torch", level="problem", value=f"{type(broken).__name__}: {broken}", meaning=meaning)
        )
    total, free = memory()
    disk = shutil.disk_usage(folder).free
    findings += [Finding(name="Processor", level="good", value=f"{cores()} cores"), _memory_finding(total, free)]
    findings += _disk_findings(folder, disk)
    return Diagnosis(
        usable=all(finding.level != "problem" for finding in findings),
        recommended_device=devices[0].id if devices else None,
        python=platform.python_version(),
        system=platform.platform(),
        cores=cores(),
        total_memory=total,
        free_memory=free,
        free_disk=disk,
        devices=devices,
        versions=versions,
        findings=findings,
    )


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """The findings as lines, then one sentence that sums them up."""
    marks = {"good": ("ok  ", "green"), "note": ("note", "yellow"), "problem": ("bad ", "bold red")}
    for finding in diagnosis.findings:
        mark, style = marks[finding.level]
        line = Text.assemble((mark, style), "  ", (finding.name, "bold"), f": {finding.value}")
        console.print(line, soft_wrap=True)
        if finding.meaning:
            console.print(Text(f"      {finding.meaning}", style=style), soft_wrap=True)
    if diagnosis.usable:
        console.print(Text(f"Ready: GenSeg can train here, on {diagnosis.recommended_device}.", style="bold green"))
    else:
        console.print(Text("Not ready: see the lines marked bad.", style="bold red"))
