"""Weights from elsewhere: they enter once, checked, and are safetensors with a licence from then on."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from osler import catalog
from osler.backbones import Backbone
from osler.problem import Problem

FORMAT = "osler-weights"
SECONDS = 300

# A .pth is a pickle, and a pickle is a program. PyTorch's restricted reader runs it, in a process of its own:
# what it breaks there, by crashing or by eating memory, is not ours. Only plain tensors come back, in safetensors.
_READER = """
import pickle, sys
import torch
from safetensors.torch import save_file
try:
    state = torch.load(sys.argv[1], weights_only=True, map_location="cpu")
except pickle.UnpicklingError:
    sys.exit(10)
except Exception:
    sys.exit(11)
for key in ("state_dict", "model_state_dict", "model"):
    if isinstance(state, dict) and isinstance(state.get(key), dict):
        state = state[key]
if not isinstance(state, dict):
    sys.exit(12)
tensors = {name: value.detach().clone().contiguous()
           for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
if not tensors:
    sys.exit(12)
save_file(tensors, sys.argv[2])
"""
_REASONS = {
    10: "the file holds more than plain tensors, or is broken: reading it could run a program, so it was refused",
    11: "this is not a file of PyTorch weights, or it is broken",
    12: "there are no named tensors in this file",
}


def import_weights(
    path: Path,
    backbone_name: str,
    out: Path,
    *,
    licence: str,
    source: str,
    options: Mapping[str, Any] | None = None,
    channels: int = 3,
) -> Path:
    """Turns a foreign file of weights into one of ours.

    Names are mapped by the backbone's ``from_foreign``, and every name and shape is checked against the backbone
    as it is built in 2D for 224x224 pixels. Nothing in the file is ever run.

    Args:
        path: ``.pth`` or ``.pt`` (a state dict), or ``.safetensors``.
        backbone_name: e.g. ``"efficientnet_lite"``.
        out: the file to write.
        licence: of these weights, e.g. ``"Apache-2.0"``; kept in the file.
        source: where they come from; kept in the file.
        options: of the backbone, those that differ from the defaults.
        channels: of the images that the weights were trained on.

    Returns:
        ``out``.

    Raises:
        Problem: the file cannot be read safely, does not fit the backbone, or licence or source is missing.
    """
    if not licence.strip() or not source.strip():
        raise Problem("weights need a licence and a source", path=path, fix="say under which terms and from where")
    if not path.is_file():
        raise Problem("there is no such file of weights", path=path, fix="check its name")
    backbone, chosen = _built(backbone_name, options or {}, channels)
    state = _foreign_tensors(path)
    mapping = getattr(catalog.find("backbones", backbone_name), "from_foreign", None)
    if mapping is not None:
        state = mapping(state)
    own = backbone.state_dict()
    # Files from before PyTorch 0.4.1 do not count batches; the count changes no result.
    state = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | state
    _require_fit(state, own, path, backbone_name)
    tensors = {name: state[name].to(own[name].dtype).contiguous() for name in own}
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise Problem(
            f"the weights hold values that are not finite, in {_some(broken)}", path=path, fix="fetch it again"
        )
    metadata = {
        "format": FORMAT,
        "format_version": "1",
        "backbone": backbone_name,
        "options": json.dumps(chosen, sort_keys=True),
        "channels": str(channels),
        "dims": "2",
        "licence": licence.strip(),
        "source": source.strip(),
        "sha256": _sha256(path),
    }
    _save(tensors, out, metadata)
    return out


def load_weights(path: Path, backbone: Backbone, name: str, *, inflate: bool = False) -> dict[str, str]:
    """Loads imported or pretrained weights into a backbone that has been built.

    A backbone for another number of channels gets the first kernels adapted: see :func:`adapt_channels`.

    Args:
        path: written by :func:`import_weights` or ``osler.pretrain``.
        backbone: filled in place.
        name: of the backbone, e.g. ``"efficientnet_lite"``.
        inflate: let 2D kernels fill a 3D backbone: see :func:`inflate_kernel`.

    Returns:
        What the file says of itself: ``backbone``, ``options`` (JSON), ``licence``, ``source``, ``sha256`` (of the
        foreign file, or of the images), ``channels``, ``dims``.

    Raises:
        Problem: it is no such file, or does not fit the backbone.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Problem("this file of weights cannot be read", path=path, fix="import the weights again") from error
    if metadata.get("format") != FORMAT or metadata.get("format_version") != "1":
        raise Problem("this is not a file of imported weights", path=path, fix="import the weights first")
    if metadata["backbone"] != name:
        raise Problem(
            f"these weights are for the backbone {metadata['backbone']}, not for {name}",
            path=path,
            fix="choose that backbone or other weights",
        )
    own = backbone.state_dict()
    volumes = {key for key, value in own.items() if value.ndim == 5}
    flat = metadata["dims"] == "2"
    if not volumes and not flat:
        raise Problem(
            "these weights look at volumes and the backbone at flat images",
            path=path,
            fix="set image.dims=3 or take other weights",
        )
    if volumes and flat and not inflate:
        raise Problem(
            "these weights look at flat images and the backbone at volumes",
            path=path,
            fix="let the backbone look along 2 axes, or ask for inflated kernels",
        )
    for key in volumes & state.keys() if flat else ():
        state[key] = inflate_kernel(state[key], own[key].shape[2])
    state = _with_channels(state, own, int(metadata["channels"]))
    _require_fit(state, own, path, name)
    backbone.load_state_dict(state)
    return metadata


def adapt_channels(kernel: Tensor, channels: int) -> Tensor:
    """First kernels ``(out, in, *size)`` for another number of input channels.

    All channels get the same kernel, the sum over the old input channels divided by the new number. One image
    repeated in every new channel then gives exactly what it gave when repeated in every old one: grey images see a
    network trained on colours as if they had been turned into colours.
    """
    total = kernel.sum(1, keepdim=True) / channels
    return total.expand(-1, channels, *kernel.shape[2:]).contiguous()


def inflate_kernel(kernel: Tensor, depth: int) -> Tensor:
    """A 2D kernel ``(out, in, h, w)`` repeated along the depth and divided by it, ``(out, in, depth, h, w)``.

    A volume whose slices are all alike gives what one slice gave, away from the first and last slices
    (Carreira and Zisserman, 2017, arXiv:1705.07750, section 2.4).
    """
    return (kernel[:, :, None] / depth).expand(-1, -1, depth, -1, -1).contiguous()


def _built(name: str, options: Mapping[str, Any], channels: int) -> tuple[Backbone, dict[str, Any]]:
    """The backbone in 2D, and its options in full."""
    module = catalog.find("backbones", name)
    known = [field.name for field in fields(module.Options)]
    if unknown := [key for key in options if key not in known]:
        raise Problem(
            f"the backbone {name} has no option {', '.join(unknown)}", fix=f"choose from {', '.join(known)}"
        )
    try:
        chosen = TypeAdapter(module.Options).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Problem(
            f"the option {where} of the backbone {name} does not fit: {first['msg']}", fix="change it"
        ) from error
    backbone: Backbone = module.build(chosen, channels=channels, dims=2, size=(224, 224))
    return backbone, {key: getattr(chosen, key) for key in known}


def _foreign_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a foreign file, read in a child process unless it is safetensors."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise Problem("this safetensors file is broken", path=path, fix="fetch it again") from error
    with tempfile.TemporaryDirectory(prefix="osler-") as folder:
        plain = Path(folder, "plain.safetensors")
        # -I: neither the current folder nor the environment can slip other modules in.
        command = [sys.executable, "-I", "-c", _READER, str(path.resolve()), str(plain)]
        try:
            child = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise Problem(f"reading it took more than {SECONDS} s", path=path, fix="fetch it again") from error
        if child.returncode:
            reason = _REASONS.get(child.returncode, "reading this file failed")
            raise Problem(reason, path=path, fix="use a file that holds a state dict, from a source that you trust")
        state = load_file(plain)
    prefix = "module."  # put there by DataParallel
    if all(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _with_channels(state: dict[str, Tensor], own: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The state with its first kernels adapted, where they differ from the backbone's in their channels only."""
    adapted = dict(state)
    for name, value in state.items():
        wanted = own[name].shape if name in own else value.shape
        if (
            value.ndim >= 4
            and value.ndim == len(wanted)
            and value.shape[1] == channels != wanted[1]
            and (value.shape[0], *value.shape[2:]) == (wanted[0], *wanted[2:])
        ):
            adapted[name] = adapt_channels(value, wanted[1])
    return adapted


def _require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path, backbone: str) -> None:
    """Checks that names and shapes are the backbone's own.

    Raises:
        Problem: lists what is missing, left over or of another shape.
    """
    missing = [name for name in own if name not in state]
    left = [name for name in state if name not in own]
    other = [
        f"{name} ({_shape(state[name])} instead of {_shape(own[name])})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("left over", left), ("of another shape", other))
        if names
    ]
    if parts:
        raise Problem(
            f"the weights do not fit the backbone {backbone}: {', '.join(parts)}",
            path=path,
            fix="check the backbone's options (depth, scale, channels, ...) or take other weights",
        )


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save(tensors: dict[str, Tensor], out: Path, metadata: dict[str, str]) -> None:
    """Writes beside ``out`` first: there is never half a file under its name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".partial")
    os.close(handle)
    try:
        save_file(tensors, partial, metadata)
        with Path(partial).open("rb") as file:
            os.fsync(file.fileno())
        Path(partial).replace(out)
    finally:
        Path(partial).unlink(missing_ok=True)
