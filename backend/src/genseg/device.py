"""The device: what it is, and what it can bear."""

import platform
from dataclasses import dataclass
from typing import Literal

import torch
from torch import autocast

from genseg.errors import RunFailed
from genseg.processor import Network, keep_freed_memory, quicken


@dataclass(frozen=True)
class Device:
    """A torch device with its name, memory and the sizes that suit it."""

    torch: torch.device
    name: str
    memory_gb: float | None  # None for a processor, whose memory is shared
    precision: Literal["bf16", "fp32"]

    @property
    def is_cpu(self) -> bool:
        return self.torch.type == "cpu"

    def patch_voxels(self, dims: int) -> int:
        """Voxels of a patch that train at a bearable pace (processor) or fit (graphics card)."""
        if self.is_cpu:
            return 128 * 128 if dims == 2 else 48 * 64 * 48
        share = min(1.0, (self.memory_gb or 8) / 16)
        return int((512 * 512 if dims == 2 else 128 * 128 * 128) * share)

    def batch(self, dims: int) -> int:
        return 8 if dims == 2 else 2

    def filters(self, dims: int) -> list[int]:
        if self.is_cpu:
            return [24, 48, 96, 192, 256] if dims == 2 else [16, 32, 64, 128, 256]
        return [32, 64, 128, 256, 512, 512] if dims == 2 else [32, 64, 128, 256, 320]

    def place(self, network: Network) -> Network:
        """The network on this device, as the device is fastest at it."""
        return (quicken(network) if self.is_cpu and self.precision == "fp32" else network).to(self.torch)

    def autocast(self, enabled: bool = True) -> autocast:
        return autocast(self.torch.type, torch.bfloat16, enabled=enabled and self.precision == "bf16")


def find_device(wish: str = "auto") -> Device:
    """'auto' takes CUDA, else the processor; Apple's GPU lacks 3D operations and is taken only by name.

    A device asked for by name must be there.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise RunFailed(
            "no_such_device",
            f"The device '{wish}' cannot be used: {first_line}.",
            "Choose --device auto or cpu, or run 'genseg doctor' to see what this machine has.",
        ) from None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        bf16 = properties.major >= 8
        return Device(device, properties.name, properties.total_memory / 2**30, "bf16" if bf16 else "fp32")
    if device.type == "mps":
        return Device(device, "Apple GPU", None, "fp32")
    keep_freed_memory()
    return Device(device, _processor_name(), None, "bf16" if has_fast_bf16() else "fp32")


def is_out_of_memory(error: BaseException) -> bool:
    """Graphics cards raise a type of their own; the processor's allocator a RuntimeError with these words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def has_fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively; emulated bf16 is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)


def _processor_name() -> str:
    return f"{platform.processor() or platform.machine()} processor, {torch.get_num_threads()} threads"
