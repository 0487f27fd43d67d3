"""Networks along time in the whole line: what is no moment never counts, and what decided is said."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torch import nn

import osler
from osler import (
    asking,
    data,
    diagnoses,
    diagnosis,
    explanation,
    fitting,
    frozen,
    held_out,
    layouts,
    model,
    planning,
    recipe,
    report,
    targets,
    training,
    weights,
)
from osler.case import Case
from osler.cohort import Calibration, Training, Validation
from osler.fitting import Course, Examples
from osler.image import Image
from osler.model import Network
from osler.problem import Problem
from osler.recipe import ImagePlan, Recipe
from osler.sequences import Rhythm, gaps

ASKED = {"label": {"task": "label", "kind": "multiclass", "classes": ["no", "yes"]}}
SEQUENCES = ("mean", "max", "rnn", "gru", "lstm", "attention", "self_attention")


def plan(sequence: str = "mean", frames: int = 5, **sections: Any) -> Recipe:
    return recipe.build({
        "image": {"size": [1, 16, 16], "frames": frames},
        "tasks": ASKED,
        "network": {"options": {"width": 4}, "sequence": sequence, **sections.pop("network", {})},
        **sections,
    })  # fmt: skip


def network(chosen: Recipe, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(chosen).eval()


def loop(frames: int, times: tuple[float, ...] = (), seed: int = 0) -> Image:
    array = np.random.default_rng(seed).integers(0, 255, (frames, 1, 1, 16, 16)).astype(np.uint8)
    return Image(array, times=times)


def quiet(line: str) -> None:
    """Nothing is printed."""


# --- when moments were --------------------------------------------------------------------------------------


def test_a_moment_that_comes_twice_counts_once() -> None:
    given = ImagePlan(size=(1, 16, 16), frames=5)
    times = data.timeline(loop(3, (0.0, 0.5, 2.0)), given)
    # Moments 0 0 1 2 2 (numpy rounds halves to even).
    assert [None if np.isnan(t) else float(t) for t in times] == [0.0, None, 0.5, 2.0, None]
    assert data.moments_of(loop(3), given).tolist() == [0, 0, 1, 2, 2]
    unknown = data.timeline(loop(3), given)
    assert np.isinf(unknown[[0, 2, 3]]).all() and np.isnan(unknown[[1, 4]]).all()
    still = data.timeline(loop(1), given)
    assert still[0] == 0 and np.isnan(still[1:]).all()
    assert data.timeline(loop(1), replace(given, frames=1)).tolist() == [0.0]


def test_the_shares_of_a_moment_that_comes_twice_are_one() -> None:
    given = ImagePlan(size=(1, 16, 16), frames=5)
    shares = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
    found = data.attended(loop(3, (0.0, 0.5, 2.0)), given, shares)
    assert [(m.frame, m.seconds) for m in found] == [(0, 0.0), (1, 0.5), (2, 2.0)]
    assert [m.share for m in found] == pytest.approx([0.3, 0.3, 0.4])
    assert [m.seconds for m in data.attended(loop(3), given, shares)] == [None] * 3
    assert data.attended(loop(3), given, np.empty(0)) == ()
    assert data.attended(loop(1), replace(given, frames=1), np.ones(1)) == ()


def test_gaps_are_counted_from_the_last_moment_that_there_is() -> None:
    nan, inf = float("nan"), float("inf")
    times = torch.tensor([[0.0, nan, 3.0, 4.0], [nan, 5.0, inf, 9.0], [inf, inf, nan, nan]])
    found = gaps(times).nan_to_num(-1).tolist()
    assert found == [[-1, -1, 3, 1], [-1, -1, -1, -1], [-1, -1, -1, -1]]


def test_the_beat_is_the_usual_gap_of_the_training_cases() -> None:
    nan, inf = float("nan"), float("inf")
    rhythm = Rhythm(timed=True)
    rhythm.fit(torch.tensor([[0.0, 10, 20, 90], [0, nan, 10, inf]]))
    assert float(rhythm.beat) == 10
    mask, between = rhythm((1, 4), torch.tensor([[0.0, 20, nan, inf]]), torch.device("cpu"))
    assert mask.tolist() == [[True, True, False, True]] and between.tolist() == [[1, 2, 1, 1]]
    rhythm.fit(torch.full((3, 4), inf))
    assert float(rhythm.beat) == 1
    # Where nobody looks at gaps, a model file has no beat: those of older versions keep opening.
    assert not Rhythm(timed=False).state_dict() and not any("beat" in k for k in network(plan("mean")).state_dict())


# --- the network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "size"), [(2, [1, 16, 16]), (2, [3, 16, 16]), (3, [8, 16, 16])])
def test_one_moment_is_answered_as_before_there_were_sequences(dims: int, size: list[int]) -> None:
    chosen = recipe.build(
        {"image": {"size": size, "dims": dims}, "tasks": ASKED, "network": {"options": {"width": 4}}}
    )
    net, x = network(chosen), torch.randn(3, 1, 1, *size)
    with torch.no_grad():
        pooled = net.pooling(net.maps(x))
        before = pooled.reshape(3, -1, pooled.shape[-1]).mean(1)
        said = net.say(x)
    assert torch.equal(said.vector, before)
    assert torch.equal(said.answers["label"], net.heads[0](before).float())


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_shorter_sequence_is_answered_as_if_the_network_took_no_more(sequence: str) -> None:
    long, short = network(plan(sequence)), network(plan(sequence, frames=3), seed=1)
    short.load_state_dict(long.state_dict())
    image = loop(3, (0.0, 0.5, 2.0))
    found = []
    for net, frames in ((long, 5), (short, 3)):
        given = ImagePlan(size=(1, 16, 16), frames=frames)
        pixels, times = data.prepare(image, given)[None] / 255, data.timeline(image, given)[None]
        found.append(asking.outputs(net, pixels, [lambda x: x], times=times))
    np.testing.assert_allclose(found[0].answers["label"], found[1].answers["label"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0].vectors, found[1].vectors, rtol=1e-5, atol=1e-6)
    attends = sequence in ("attention", "self_attention")
    assert found[0].shares.shape == ((1, 5) if attends else (1, 0))
    if attends:
        np.testing.assert_allclose(found[0].shares[0, [0, 2, 3]], found[1].shares[0], rtol=1e-5)


def test_slices_are_averaged_before_moments_are_put_in_order() -> None:
    chosen = plan("gru", frames=2, image={"size": [3, 16, 16], "frames": 2})
    net, x = network(chosen), torch.randn(1, 2, 1, 3, 16, 16)
    with torch.no_grad():
        each = [net.pooling(net.backbone(x[0, t, :, d][None]))[0] for t in range(2) for d in range(3)]
        moments = torch.stack([torch.stack(each[:3]).mean(0), torch.stack(each[3:]).mean(0)])[None]
        torch.testing.assert_close(net.moments(net.maps(x), 1), moments)
        torch.testing.assert_close(net.say(x).answers, net.along(moments).answers)


def test_the_gate_sees_what_a_state_has_forgotten() -> None:
    """A vector far away at the first of 40 moments: a bounded state cannot show it, the mean of the features does."""
    net = network(plan("rnn", frames=40))
    usual = torch.randn(1, 40, net.features)
    strange = usual.clone()
    strange[:, 0] += 1e4
    with torch.no_grad():
        assert float((net.along(strange).vector - net.along(usual).vector).abs().max()) > 100
        assert float((net.vector(strange) - net.vector(usual)).abs().max()) < 10


@pytest.mark.parametrize("sequence", [name for name in SEQUENCES if name not in ("mean", "max")])
def test_bfloat16_does_not_add_up(sequence: str) -> None:
    net = network(plan(sequence, frames=30))
    x = torch.randn(2, 30, net.features)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net.along(x.bfloat16()).answers["label"]
    with torch.no_grad():
        torch.testing.assert_close(low, net.along(x.bfloat16().float()).answers["label"], rtol=0.05, atol=0.02)


def test_unknown_sequences_and_options_are_refused() -> None:
    with pytest.raises(Problem, match="choose one of attention, gru"):
        plan("transformer")
    with pytest.raises(Problem, match=r"did you mean gru\.hidden"):
        plan("gru", network={"sequence_options": {"hiden": 3}})
    with pytest.raises(Problem, match="is no table"):
        recipe.check_shape({"network": {"sequence_options": 3}})
    merged = recipe.merge(
        {"network": {"sequence": "gru", "sequence_options": {"layers": 2}}}, {"network": {"sequence": "rnn"}}
    )
    assert merged["network"] == {"sequence": "rnn"}


def test_as_many_moments_as_a_step_can_take() -> None:
    def fingerprint(frames: int) -> planning.Fingerprint:
        return planning.Fingerprint(100, 100, (1, 64, 64), (1.0, 1.0), frames, 1, (), (), ("uint8",), {}, False, 0, 0)

    flat, volume = {"size": [1, 128, 128], "channels": 1}, {"size": [32, 96, 96], "channels": 1}
    assert planning.moments(fingerprint(1), flat)[0] == 1
    assert planning.moments(fingerprint(20), flat)[0] == 20
    assert planning.moments(fingerprint(1000), flat)[0] == 32
    frames, why = planning.moments(fingerprint(1000), volume)
    assert frames == 2**21 // (32 * 96 * 96) and "so many fit" in why
    assert planning.moments(fingerprint(1000), {"size": [64, 512, 512], "channels": 3})[0] == 2


# --- the whole line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loops of 6 to 8 frames of noise; one frame of every second loop has a bright square."""
    folder = tmp_path_factory.mktemp("loops")
    rng = np.random.default_rng(0)
    rows = ["case,image,label,frame"]
    for i in range(90):
        frames = rng.normal(60, 8, (6 + i % 3, 1, 1, 16, 16)).astype(np.float32)
        at = int(rng.integers(0, len(frames)))
        frames[at, :, :, 4:12, 4:12] += 90 * (i % 2)
        np.save(folder / f"{i}.npy", frames)
        rows.append(f"{i},{i}.npy,{['no', 'yes'][i % 2]},{at}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def attending(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = recipe.settings((
        "epochs=20", "batch=6", "folds=0", "members=1", "views=1", "precision='float32'", "channels_last=false",
        "network.options.width=4", "learning_rate=0.04", "network.sequence=attention", "augmentation=none",
        "threads=1", "ema=0.8", "network.dropout=0", "image.size=[1,16,16]",
    ))  # fmt: skip
    out = tmp_path_factory.mktemp("run")
    osler.train(planted, out, settings, say=quiet)
    return out


def test_the_planted_moment_has_the_largest_share_and_is_explained(
    planted: Path, attending: Path, tmp_path: Path
) -> None:
    made = osler.load_model(attending)
    assert made.recipe.image.frames == 8
    rows = [line.split(",") for line in (planted / "manifest.csv").read_text().splitlines()[1:]]
    right = []
    for row in rows[1:60:2]:
        found = osler.diagnose(made, osler.read_case(planted / row[1]))
        assert len(found.moments) == len(np.load(planted / row[1])) and sum(
            m.share for m in found.moments
        ) == pytest.approx(1)
        right.append(max(found.moments, key=lambda m: m.share).frame == int(row[3]))
    assert np.mean(right) >= 0.9
    number = next(k for k, yes in enumerate(right) if yes)
    row = rows[1 + 2 * number]
    diagnoses.diagnose_paths(attending, [planted / row[1]], tmp_path, say=quiet)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    told = json.loads((folder / "diagnosis.json").read_text())["moments"]
    assert [m["frame"] for m in told] == list(range(len(told))) and told[0]["seconds"] is None
    assert max(told, key=lambda m: m["share"])["frame"] == int(row[3])
    page = (folder / "diagnosis.html").read_text()
    assert "Which moments decided?" in page and f'alt="moment {int(row[3]) + 1}"' in page
    case = osler.read_case(planted / row[1])
    why = explanation.explain(made, case, method="occlusion")
    assert why.frame == int(row[3]) and f"at moment {int(row[3]) + 1}" in why.sentences[0]
    assert why.heatmap.shape == (1, 16, 16) and why.heatmap.max() > 0


@pytest.mark.parametrize("method", ["none", "occlusion"])
def test_of_a_loop_that_was_thinned_each_moment_is_shown_under_its_own_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """20 frames that differ in brightness, of which a model looks at 5: 0, 5, 10, 14 and 19."""
    made = model.Model(plan("attention"), [network(plan("attention"))])
    bright = np.repeat(np.arange(20, dtype=np.uint8) * 10, 256).reshape(20, 1, 1, 16, 16)
    np.save(tmp_path / "loop.npy", bright)
    case = data.read_case(layouts.single(tmp_path / "loop.npy"), moments=made.recipe.moments)
    found = diagnosis.diagnose(made, case)
    assert [moment.frame for moment in found.moments] == [0, 5, 10, 14, 19]
    pages: list[tuple[Any, Any]] = []
    monkeypatch.setattr(report, "diagnosis_page", lambda _, shown, *rest: pages.append((shown, rest[2])))
    monkeypatch.setattr(targets, "MOST", 0.0)
    diagnoses.write_diagnosis(found, case, made, tmp_path, method)
    [(shown, frames)] = pages
    assert len(frames) == 4 and all((picture == 10 * number).all() for number, picture in frames.items())
    first = max(found.moments, key=lambda moment: moment.share).frame
    assert (shown == 10 * first).all()
    why = explanation.explain(made, case, method="occlusion")
    assert why.frame == first and f"at moment {first + 1}" in why.sentences[0]
    made.save(tmp_path / "model.safetensors")
    [told] = [*explanation.explain_path(tmp_path / "model.safetensors", tmp_path / "loop.npy", tmp_path / "why",
                                        method="occlusion")][:1]  # fmt: skip
    assert f"at moment {first + 1}" in told
    assert json.loads((tmp_path / "why" / "explanation.json").read_text())["explanations"][0]["frame"] == first


@pytest.mark.parametrize(("frames", "cases"), [(5, 1), (1, 7)])
def test_a_folder_of_pictures_is_a_loop_to_a_model_of_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int, cases: int
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    chosen = plan(frames=frames)
    model.Model(chosen, [network(chosen)]).save(tmp_path / "model.safetensors")
    (tmp_path / "loop").mkdir()
    for number in range(7):
        Picture.fromarray(np.full((16, 16), 30 * number, np.uint8)).save(tmp_path / "loop" / f"{number}.png")
    (tmp_path / "loop" / ".hidden").write_text("")
    out = tmp_path / "out"
    done = diagnoses.diagnose_paths(
        tmp_path / "model.safetensors", [tmp_path / "loop"], out, method="none", say=quiet
    )
    assert done == (cases, 0)
    told = json.loads((out / "diagnoses.json").read_text())
    looked = "The model looks at 5 of the 7 moments, evenly spaced." in told[0]["notes"]
    assert len(told) == cases and looked == (frames > 1)
    # Beside a table its rows are the cases.
    (tmp_path / "loop" / "manifest.csv").write_text("image\n0.png\n1.png\n")
    entries, _ = diagnoses.cases_below(tmp_path / "loop", loops=frames > 1)
    assert len(entries) == 2


@pytest.mark.parametrize("method", ["gradcam", "occlusion", "integrated_gradients"])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_every_sequence_can_be_explained(sequence: str, method: str) -> None:
    net = network(plan(sequence))
    made = model.Model(plan(sequence), [net])
    why = explanation.explain(made, Case("a", "a", {"image": loop(4)}), method=method)
    assert why.heatmap.shape == (1, 16, 16) and np.isfinite(why.heatmap).all()


def test_of_one_moment_the_others_stay_as_they_are() -> None:
    chosen = plan("attention")
    net, x, times = network(chosen), torch.randn(1, 5, 1, 1, 16, 16), torch.arange(5.0)[None]
    one = targets.OfPart(net, "label", 1, x, times, 2)
    whole = targets.OfClass(net, "label", 1, times)
    alone = x[:, 2:3]
    torch.testing.assert_close(one.raw(alone), whole.raw(x))
    torch.testing.assert_close(one.score(one.levels(alone), 1), whole.score(whole.levels(x), 1))
    other = torch.randn(1, 1, 1, 1, 16, 16)
    torch.testing.assert_close(one.raw(other), whole.raw(torch.cat([x[:, :2], other, x[:, 3:]], 1)))


def test_networks_with_random_weights_keep_what_was_measured() -> None:
    """A map that is compared with that of another clock would differ for that alone."""
    chosen = plan("gru", covariates={"columns": ["age", "sex"], "kinds": {"age": "number", "sex": "category"},
                                     "categories": {"sex": ["F", "M"]}, "ranges": {"age": [0, 120]}})  # fmt: skip
    net = network(chosen)
    net.rhythm.beat.fill_(40.0)
    net.normalise.mean.fill_(3.0)
    assert net.persons is not None
    net.persons.fit(np.array([[50, 0], [60, 0]], np.float32))
    made = model.Model(chosen, [net])
    asked = targets.ask(made, Case("a", "a", {"image": loop(5, (0.0, 40.0, 80.0, 120.0, 160.0))}))
    seen: list[Network] = []

    def explain(target: Any, x: torch.Tensor, options: Any) -> torch.Tensor:
        seen.append(target.network)
        return torch.rand(1, 16, 16)

    module: Any = ModuleType("map")
    module.Options, module.explain = (lambda: None), explain
    explanation.randomised(module, asked, [torch.rand(1, 16, 16)])
    learned = dict(net.named_parameters())
    for fresh in seen:
        assert fresh.rhythm.beat == 40 and (fresh.normalise.mean == 3).all() and fresh.persons is not None
        assert fresh.persons.mean.tolist() == [55, 0] and fresh.persons.seen.tolist() == [True, False]
        assert not torch.equal(dict(fresh.named_parameters())["heads.0.weight"], learned["heads.0.weight"])


# --- a frozen backbone --------------------------------------------------------------------------------------


@pytest.fixture
def learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a backbone, and a cache of its own."""
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    net, path = network(plan()), tmp_path / "weights.safetensors"
    header = {"format": weights.FORMAT, "format_version": "1", "backbone": "resnet", "options": '{"width": 4}',
              "channels": "1", "dims": "2"}  # fmt: skip
    model.write_tensors(path, net.backbone.state_dict(), header)
    return path


def examples(part: Any, count: int, frames: int = 5) -> Examples:
    rng = np.random.default_rng(count)
    y = (np.arange(count) % 2).astype(np.float32)[:, None]
    pixels = rng.normal(0, 1, (count, frames, 1, 1, 16, 16)).astype(np.float32)
    pixels += np.where(y, 1, -1).reshape(-1, 1, 1, 1, 1, 1) * np.linspace(-1, 1, frames).reshape(-1, 1, 1, 1, 1)
    return Examples(part, pixels, {"label": y}, np.tile(np.arange(frames, dtype=np.float32), (count, 1)))


def freezing(learned: Path, sequence: str = "gru", **network_plan: Any) -> Recipe:
    network_plan = {"weights": str(learned), **network_plan}
    steps = {"freeze": True, "epochs": 12, "batch": 16, "learning_rate": 0.02, "ema": 0.5}
    return plan(sequence, network=network_plan, training=steps)


def test_features_are_computed_once_and_are_those_of_the_network(
    learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, cases = freezing(learned), examples(Training(()), 10)
    state = fitting.start(cases, chosen, 0)
    found = frozen.features(state.network, cases.pixels, chosen)
    with torch.no_grad():
        x = state.network.normalise(torch.from_numpy(cases.pixels))
        expected = state.network.eval().moments(state.network.maps(x), 10)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(Network, "maps", lambda *given: pytest.fail("computed again"))
    np.testing.assert_array_equal(frozen.features(state.network, cases.pixels, chosen), found)
    monkeypatch.undo()
    # Other pixels, other weights: other features.
    with torch.no_grad():
        next(state.network.backbone.parameters()).mul_(2)
    assert not np.allclose(frozen.features(state.network, cases.pixels, chosen), found)


def test_what_is_held_out_is_not_looked_at_again(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = freezing(learned)
    training_part, held = examples(Training(()), 24), examples(Calibration(()), 8)
    network = fitting.start(training_part, chosen, 0).network.eval()
    moving = replace(chosen, training=replace(chosen.training, freeze=False))
    _, expected = held_out._asked((0, network), training_part, held, moving)
    for part in (training_part, held):
        frozen.features(network, part.pixels, chosen)
    monkeypatch.setattr(Network, "maps", lambda *given: pytest.fail("computed again"))
    _, found = held_out._asked((0, network), training_part, held, chosen)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, values in expected.outputs.items():
        np.testing.assert_allclose(found.outputs[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.away, expected.away, rtol=1e-4)


def test_features_that_another_process_took_away_are_computed_again(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, cases = freezing(learned), examples(Training(()), 10)
    state = fitting.start(cases, chosen, 0)
    found = frozen.features(state.network, cases.pixels, chosen)
    monkeypatch.setattr(frozen.cache, "find", lambda name: tmp_path / "gone")
    np.testing.assert_array_equal(frozen.features(state.network, cases.pixels, chosen), found)


def test_a_frozen_backbone_stays_and_the_rest_learns(learned: Path, tmp_path: Path) -> None:
    chosen = freezing(learned)
    before = fitting.start(examples(Training(()), 48), chosen, 0).network.backbone.state_dict()
    course = Course(tmp_path, 0, 1, quiet, 0.0)
    net = frozen.fit(examples(Training(()), 48), examples(Validation(()), 32), chosen, course)
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    held = examples(Validation(()), 40)
    said = asking.outputs(net, held.pixels, [lambda x: x], times=held.times).answers["label"]
    assert float((said.argmax(1) == held.targets["label"][:, 0]).mean()) > 0.85


def test_moments_are_left_out_at_random_but_never_all() -> None:
    times = np.tile(np.array([0, 1, np.nan, 3, np.nan], np.float32), (2000, 1))
    times[1000:, 1:] = np.nan
    kept = ~np.isnan(frozen.left_out(times, osler_keys(2000)).numpy())
    assert kept.any(1).all() and not kept[:, [2, 4]].any() and kept[1000:, 0].all()
    assert 0.07 < 1 - kept[:1000][:, [0, 1, 3]].mean() < 0.12


def osler_keys(count: int) -> Any:
    from osler import draws

    return draws.keys(3, np.arange(count))


def test_what_cannot_be_frozen_is_said(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="learned nothing"):
        frozen.require(plan(training={"freeze": True}))
    with pytest.raises(Problem, match="attention has to learn"):
        chosen = freezing(learned, pooling="attention")
        frozen.fit(examples(Training(()), 8), examples(Validation(()), 4), chosen, Course(tmp_path, 0, 1, quiet, 0.0))
    outlined = {"mask": {"kind": "segmentation", "classes": ["a"], "values": [[1]]}}
    with pytest.raises(Problem, match="asks where something is"):
        frozen.require(recipe.build({**recipe.to_dict(freezing(learned)), "tasks": outlined}))


def test_training_goes_through_a_frozen_backbone(planted: Path, learned: Path, tmp_path: Path) -> None:
    settings = recipe.settings((
        "epochs=3", "batch=16", "members=1", "folds=0", "views=1", "freeze=true", f"network.weights={learned}",
        "network.sequence=lstm", "precision='float32'", "channels_last=false", "image.size=[1,16,16]",
    ))  # fmt: skip
    said: list[str] = []
    made = training.train(planted, tmp_path / "run", settings, say=said.append)
    assert any("computing features once" in line for line in said)
    assert osler.diagnose(made, osler.read_case(planted / "1.npy")).moments == ()
    assert isinstance(made.networks[0].heads[0], nn.Module)
