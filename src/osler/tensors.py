"""Tensors and their facts in one safetensors file, which is there whole or not at all."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from osler.problem import Problem


def content_hash(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header's texts and every tensor's name, type, shape and bytes, in the order of names."""
    digest = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], mode: int = 0o644) -> None:
    """A safetensors file that is there whole or not at all, even if the machine stops in between.

    ``mode`` says who may read it, from its first byte on.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode)
        save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, part, dict(header))
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise Problem(f"cannot be written ({error})", path=path, fix="free some space and run it again") from error


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a safetensors file.

    Raises:
        Problem: it is missing, or not a whole safetensors file.
    """
    if not path.exists():
        raise Problem("there is no such file", path=path, fix="check the path")
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Problem(
            f"this is not a whole safetensors file ({str(error)[:120]})", path=path, fix="copy it again"
        ) from error
