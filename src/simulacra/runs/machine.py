"""The machine that a run stands on: devices, precision, memory, processes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from simulacra.refusals import Refusal, shown

MALLOC = {
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 * 2**20),
    "M_MMAP_THRESHOLD": (-3, 2**30),
}
"""What glibc's mallopt is told: keep what is free, grow by 64 MiB, and map only what is above 1 GiB."""


def choose_device(name: str = "auto") -> torch.device:
    """'auto' takes CUDA, then Apple's MPS, then the CPU; a device that is not there is refused."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = f"the device {shown(name)} is not there"
        raise Refusal("DEP-001", reason, way_out="use --device cpu, or auto") from error


def has_bf16(device: torch.device) -> bool:
    """Whether the device has units that make bfloat16 faster than float32, not only possible."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    flags = _processor_flags()
    return bool({"amx_bf16", "avx512_bf16"} & flags) or "bf16" in flags


def _processor_flags() -> set[str]:
    """The processor's feature flags; empty where the system does not list them."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return set()
    for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return set()


def keep_freed_memory() -> None:
    """Let the C library keep what one step frees for the next one.

    glibc hands large blocks back to the system and takes them again, zeroed page by page, in every
    step: a seventh of the time of a small convolutional model. Only glibc has these settings;
    elsewhere nothing is done. It holds for the whole process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for setting, value in MALLOC.values():
        library.mallopt(setting, value)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a card says of the machine and the versions; no names and no paths."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "bf16_units": has_bf16(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def peak_memory_mib() -> float:
    """The largest resident size of this process so far, in MiB; 0 where it cannot be asked."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


@contextmanager
def processes() -> Iterator[None]:
    """Inside, the processes that ``torchrun`` started know each other; one alone changes nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()
