"""Where the recipe asks for no average and no clipping, none is computed, and everything else stays the same."""

import math
from pathlib import Path

import pytest
import torch

from osler import fitting, model, phantom, recipe, training

PLAIN = {
    "image": {"size": [1, 24, 24]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {
        "epochs": 2, "batch": 16, "folds": 0, "members": 1, "ema": 0.0, "clip": 0.0,
        "precision": "float32", "channels_last": True, "threads": 1,
    },
    "inference": {"views": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = phantom.Phantom(size=24, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(6.0, 9.0))
    return phantom.write_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 80)


class Stopped(Exception):
    """Stands for whatever ends a training early."""


def test_it_ends_with_the_last_weights_and_resumes_to_the_same_bits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training.train(folder, tmp_path / "whole", PLAIN, say=lambda line: None)
    _, kept = model.read_tensors(tmp_path / "whole" / "checkpoints" / "member-0.safetensors")
    for name, value in whole.networks[0].state_dict().items():
        assert torch.equal(value, kept[f"network.{name}"])

    step, left = fitting.step_once, [5]

    def stopping(*arguments: object) -> float:
        left[0] -= 1
        if not left[0]:
            raise Stopped
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "step_once", stopping)
        with pytest.raises(Stopped):
            training.train(folder, tmp_path / "resumed", PLAIN, say=lambda line: None)
    resumed = training.train(folder, tmp_path / "resumed", PLAIN, say=lambda line: None)
    assert resumed.sha256 == whole.sha256


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_the_norm_is_measured_and_cut_only_at_a_limit(limit: float) -> None:
    plan = recipe.build({**PLAIN, "tasks": {"a": {"kind": "multiclass", "classes": ["x", "y"]}}})
    network = model.Network(plan)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    norm = float(before.double().norm())
    assert float(fitting._clip(network, limit)) == pytest.approx(norm, rel=1e-4)
    after = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    expected = min(norm, limit or math.inf)
    assert float(after.double().norm()) == pytest.approx(expected, rel=1e-4)
