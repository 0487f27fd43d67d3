"""Where an answer comes from, as a map that is itself put to the test, with the result beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional

from osler import catalog, covariates, data, diagnosis, draws, files, layouts, modalities, shares, targets
from osler.case import Case, Entry, Finding
from osler.display import picture as picture
from osler.explanations import Target
from osler.model import Model, Network
from osler.problem import Problem
from osler.pseudonym import pseudonym
from osler.targets import Asked

STEPS = 8  # of a deletion or insertion curve
ORDERS = 4  # random orders, and as many moved copies of the map, that it is compared with
ROUNDS = 2  # networks with random weights
LEAST = 0.02  # difference between insertion and deletion that counts as one
SIMILAR = 0.5  # rank correlation from which two maps count as the same
Heat = Float[np.ndarray, "d h w"]
_AUTO = ("gradcam", "occlusion", "integrated_gradients")
_WARNING = "Failed its own test: do not rely on this map."


@dataclass(frozen=True, eq=False)
class Explanation:
    """A map of what an answer rests on, and whether it may be relied on.

    Attributes:
        method: a file of ``explanations``.
        task: the name of the question, and ``name`` of the class (or quantity) that is explained.
        heatmap: float32 ``(depth, height, width)`` on the image as it was read; 1 where it counts most, 0 where
            it does not count.
        tests: what :func:`removal` and :func:`randomised` measured.
        passed: it passed both; a map that did not must not be relied on.
        sentences: what is shown and what the tests say, for people.
        frame: the moment that it belongs to, by its number in its sequence; ``None`` where it is the mean of all.
        modality: of several images the one that it belongs to; else empty.
    """

    method: str
    task: str
    name: str
    heatmap: NDArray[np.float32]
    tests: Mapping[str, float]
    passed: bool
    sentences: tuple[str, ...]
    frame: int | None = None
    modality: str = ""


def explain(made: Model, case: Case, finding: Finding | None = None, method: str = "gradcam") -> Explanation:
    """Which places of the image speak for a finding, with the result of the map's own tests.

    Args:
        made: the model; of an ensemble the mean of the members' maps is shown.
        case: with its image; of several modalities the one is explained without which there is least evidence.
        finding: its task and name say what is explained, and its box or mask where: the score of that box, or the
            mean over the pixels of that mask. Without a place, of a task that asks for one, the surest of that name
            is taken. ``None``: what the first task decides on, or the surest place.
        method: a file of ``explanations``; or ``auto``: the first of Grad-CAM, occlusion and integrated gradients
            that passes its tests; where none does, the first of them, which then says so.

    Raises:
        Problem: there is no such task, class or method, the method does not fit the network, or nothing was found.
    """
    return _by(method, targets.ask(made, case, finding))


def _by(method: str, asked: Asked) -> Explanation:
    if method != "auto":
        return _explained(asked, method)
    failed: list[Explanation] = []
    for name in _AUTO:
        found = _explained(asked, name)
        if found.passed:
            tried = " and ".join(_title(one.method) for one in failed)
            note = (f"{tried} failed the test before.",) if failed else ()
            return replace(found, sentences=(*found.sentences, *note))
        failed.append(found)
    others = " and ".join(_title(one.method) for one in failed[1:])
    return replace(failed[0], sentences=(*failed[0].sentences, f"{others} failed too."))


def _explained(asked: Asked, method: str) -> Explanation:
    module = catalog.find("explanations", method)
    if not all(module.available(target) for target in asked.targets):
        raise Problem(f"{method} does not fit this model", fix="choose gradcam, occlusion or integrated_gradients")
    maps = [_map(module, target, x) for target, x in zip(asked.targets, asked.inputs, strict=True)]
    heat = _at_most_one(torch.stack(maps).mean(0))
    tests = removal(asked, heat) | {"randomised": randomised(module, asked, maps)}
    failures = _failures(asked, heat, tests)
    about = f" {asked.place}" if asked.place else ""
    about += "" if len(maps) == 1 else f", the mean of {len(maps)} networks"
    sentences = [f"{_title(method)}: where the image speaks for {asked.name} ({asked.task}){about}."]
    if failures:
        sentences.append(f"This map failed its own test: {'; '.join(failures)}; do not rely on it.")
    else:
        sentences += _passes(tests)
    shown = asked.to_image(heat.cpu().numpy())
    which = asked.frame, asked.modality
    return Explanation(method, asked.task, asked.name, shown, tests, not failures, tuple(sentences), *which)


def _title(method: str) -> str:
    return "Grad-CAM" if method == "gradcam" else method.replace("_", " ").capitalize()


def _map(module: ModuleType, target: Target, x: Tensor) -> Float[Tensor, "d h w"]:
    """The map of one network, 0 to 1; what speaks against the target is left out."""
    found: Tensor = module.explain(target, x, module.Options())
    return _at_most_one(found.detach().float().clamp(min=0).nan_to_num())


def _at_most_one(heat: Float[Tensor, "d h w"]) -> Float[Tensor, "d h w"]:
    highest = heat.max()
    return heat / highest if highest > 0 else heat


# --- the tests of a map -----------------------------------------------------------------------------------


def removal(asked: Asked, heat: Float[Tensor, "d h w"]) -> dict[str, float]:
    """Deletion and insertion (Petsiuk 2018): does what the map marks carry the answer?

    The image is cut into blocks, which are taken away (:func:`osler.explanations.removed`) one after another in the
    order of the map, hottest first (deletion), or brought back in that order (insertion). Measured is the area
    under the calibrated probability of the class. A random order's insertion is another random order's deletion,
    so the same curves serve both. Scattered blocks often hide nothing, however, where a patch of them would: so the
    map is compared with itself as well, moved to other places.

    Returns:
        ``deletion`` (lower is better) and ``insertion`` (higher); ``random``, the mean of random orders, and
        ``spread``, their standard deviation; ``moved``: insertion less deletion of the best of the moved copies.
    """
    depth, height, width = size = heat.shape
    most = 14 if depth == 1 else 8
    pieces = (min(depth, most), min(height, most), min(width, most))
    blocks = functional.adaptive_avg_pool3d(heat[None, None], pieces)[0, 0].cpu().numpy()
    orders = [np.argsort(-one.ravel(), kind="stable") for one in [blocks, *_moved(blocks)]]
    orders = [way for order in orders for way in (order, order[::-1])]
    orders += [draws.permutation(draws.keys(number, 23), blocks.size) for number in range(ORDERS)]
    counts = np.linspace(0, blocks.size, STEPS + 1).round().astype(int)[1:-1]

    def kept() -> Iterator[Tensor]:
        yield torch.ones(size)
        yield torch.zeros(size)
        for order in orders:
            for count in counts:
                share = torch.ones(blocks.size)
                share[torch.from_numpy(order[:count].copy())] = 0
                yield functional.interpolate(share.reshape(1, 1, *pieces), size=size, mode="nearest")[0, 0]

    curve = asked.answers(kept())
    areas = ((curve[0] + curve[1]) / 2 + curve[2:].reshape(len(orders), -1).sum(1)) / STEPS
    gaps = areas[1:-ORDERS:2] - areas[:-ORDERS:2]
    return {
        "deletion": float(areas[0]),
        "insertion": float(areas[1]),
        "random": float(areas[-ORDERS:].mean()),
        "spread": float(areas[-ORDERS:].std(ddof=1)),
        "moved": float(gaps[1:].max()),
    }


def _moved(blocks: Heat) -> Iterator[Heat]:
    """The map moved round by a quarter to three quarters of each axis, every second copy mirrored as well."""
    for number in range(ORDERS):
        part = draws.uniform(draws.keys(number, 29), "part", (3,), 0.25, 0.75)[0]
        by = [round(share * n) for share, n in zip(part, blocks.shape, strict=True)]
        yield np.roll(blocks[:, ::-1] if number % 2 else blocks, by, (0, 1, 2))


def randomised(module: ModuleType, asked: Asked, maps: Sequence[Tensor]) -> float:
    """Does the map depend on what was learned (Adebayo 2018)?

    Returns:
        The mean over ``ROUNDS`` of the absolute rank correlation of a member's map with the map of the same
        network with all weights drawn anew. A map without any variation correlates with nothing: 0.
    """
    found = []
    for number in range(ROUNDS):
        member = number % len(maps)
        target, x = asked.targets[member], asked.inputs[member]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + number)
            fresh = Network(asked.made.recipe)
        # Normalisation, the usual gap and the scale of covariates are measured, not learned.
        measured = dict(target.network.named_buffers())
        for name, value in fresh.named_buffers():
            if name.startswith(("normalise.", "rhythm.", "persons.")):
                value.copy_(measured[name])
        other = _map(module, replace(target, network=fresh.to(x.device).eval()), x)
        found.append(abs(_rank_correlation(maps[member].cpu().numpy(), other.cpu().numpy())))
    return float(np.mean(found))


def _rank_correlation(a: Float[np.ndarray, "*size"], b: Float[np.ndarray, "*size"]) -> float:
    first, second = (rankdata(one) - (one.size + 1) / 2 for one in (a, b))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0


def _failures(asked: Asked, heat: Tensor, tests: Mapping[str, float]) -> list[str]:
    """What a map failed at, in words.

    The rule: insertion must exceed deletion by more than ``LEAST``, by more than three spreads of random orders (of
    which the difference of two has 1.4), and by more than in any moved copy of the map; and neither may be clearly
    worse than random orders. A map need not beat them at both: where half of a lesion is enough for the network,
    bringing it back first gains nothing. And a network with random weights must give another map.
    """
    if heat.max() <= 0:
        return [f"nothing in the image speaks for {asked.name}, the map is empty"]
    deletion, insertion, random, spread = (tests[key] for key in ("deletion", "insertion", "random", "spread"))
    gap, slack = insertion - deletion, max(spread, LEAST / 2)
    failures = []
    if gap <= max(3 * spread, LEAST) or deletion > random + slack or insertion < random - slack:
        failures.append(f"what it marks carries the answer no better than places at random ({_measured(tests)})")
    elif gap <= tests["moved"]:
        failures.append(f"moved to another place it does as well (difference {gap:.3f}, moved {tests['moved']:.3f})")
    if tests["randomised"] >= SIMILAR:
        failures.append(
            "networks that have learned nothing give nearly the same map "
            f"(rank correlation {tests['randomised']:.2f}, limit {SIMILAR})"
        )
    return failures


def _measured(tests: Mapping[str, float]) -> str:
    return (
        f"mean answer {tests['deletion']:.3f} while it is taken away first, {tests['insertion']:.3f} while it is "
        f"shown first, {tests['random']:.3f} ± {tests['spread']:.3f} in random order"
    )


def _passes(tests: Mapping[str, float]) -> list[str]:
    return [
        f"Tested: the answer rests on what the map marks ({_measured(tests)}), and less on the same map elsewhere.",
        "Networks that have learned nothing give another map "
        f"(rank correlation {tests['randomised']:.2f}, limit {SIMILAR}).",
    ]


# --- pictures ---------------------------------------------------------------------------------------------


def overlay(
    picture: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"], heatmap: Float[np.ndarray, "h w"], passed: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """The heatmap over the picture, in ``inferno``; where it is 0 the picture stays as it is.

    Small pictures are enlarged to 384 pixels on the short side. A map that did not pass carries its warning.

    Args:
        picture: of :func:`picture`.
        heatmap: one slice, 0 to 1, as large as the picture.
        passed: :attr:`Explanation.passed`.
    """
    from matplotlib import colormaps
    from PIL import Image as Pillow

    factor = max(1.0, 384 / min(heatmap.shape))
    size = (round(heatmap.shape[1] * factor), round(heatmap.shape[0] * factor))
    below = np.asarray(Pillow.fromarray(picture).convert("RGB").resize(size, Pillow.Resampling.BICUBIC), np.float32)
    heat = Pillow.fromarray(heatmap.astype(np.float32)).resize(size, Pillow.Resampling.BILINEAR)
    share = np.asarray(heat).clip(0, 1)
    colour = np.asarray(colormaps["inferno"](0.25 + 0.75 * share), np.float32)[..., :3] * 255
    opacity = 0.65 * share[..., None]
    mixed = (below * (1 - opacity) + colour * opacity).round().astype(np.uint8)
    return mixed if passed else _warned(mixed)


def _warned(shown: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A black band across the top with the warning in as many lines as it needs."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    drawn = Pillow.fromarray(shown)
    pen, side = ImageDraw.Draw(drawn), min(drawn.size)
    font = ImageFont.load_default(size=max(16, side / 20))
    lines = [""]
    for word in _WARNING.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = pen.textlength(longer, font=font) <= drawn.width * 0.94
        lines = [*lines[:-1], longer] if fits else [*lines, word]
    text, margin = "\n".join(lines), round(drawn.width * 0.03)
    _, top, _, bottom = pen.multiline_textbbox((margin, margin), text, font=font)
    pen.rectangle((0, 0, drawn.width, bottom + margin), fill=(0, 0, 0))
    pen.multiline_text((margin, 2 * margin - top + (top - margin) / 2), text, fill=(255, 190, 60), font=font)
    return np.asarray(drawn)


# --- from a file to files ---------------------------------------------------------------------------------


def explain_path(
    run: Path,
    source: Path | None,
    out: Path,
    *,
    method: str = "gradcam",
    finding: str | None = None,
    known: Sequence[str] = (),
    images: Sequence[str] = (),
) -> Iterator[str]:
    """Explains one case and writes ``<method>.png`` and ``explanation.json``; gives what there is to say, by line.

    Args:
        run: run folder or model file.
        source: one image, or a folder with one series; ``None`` where ``images`` says it.
        out: folder; made where it is missing.
        method: a file of ``explanations``, ``auto``, or ``all`` that fit the model.
        finding: name of the class to explain.
        known: covariates, ``name=value`` each; then the share of each is said, too.
        images: those of a case of several modalities, ``modality=path`` each.

    Raises:
        Problem: no image is given, or in two ways; the model or the image cannot be read; there is no such class or
            method.
    """
    from PIL import Image as Pillow

    from osler import model

    made = model.load(run)
    plan = made.recipe.image
    person = covariates.named(made.recipe.covariates, known)
    entry = replace(_entry(source, plan.modalities, images), covariates=person)
    case = data.read_case(entry, moments=made.recipe.moments)
    image = data.the_image(case, plan)
    named = None if finding is None else _named(made, finding)
    asked = targets.ask(made, case, named)
    methods = [method] if method != "all" else _fitting(asked)
    files.folder(out)
    content = []
    for one in methods:
        why = _by(one, asked)
        plane = int(why.heatmap.sum((1, 2)).argmax())
        of = modalities.called(made, image, why.modality)
        seen = picture(of, plane, None if why.frame is None else of.place(why.frame))
        shown = overlay(seen, why.heatmap[plane], passed=why.passed)
        Pillow.fromarray(shown).save(out / f"{why.method}.png")
        content.append({
            "method": why.method, "task": why.task, "name": why.name, "slice": plane, "frame": why.frame,
            "modality": why.modality or None,
            "passed": why.passed, "tests": dict(why.tests), "sentences": list(why.sentences),
        })  # fmt: skip
        yield from why.sentences
    head = {"schema_version": 1, "case": pseudonym(case.id), "model": made.sha256}
    told: dict[str, object] = {}
    something = any(value not in (None, "") for value in person.values())
    if something and len(plan.modalities) > 1:
        yield "what the covariates add is not told: beside several modalities it cannot be told apart yet"
    elif something:
        found = diagnosis.shared(made, case, asked.task, asked.name)
        told = {"shares": asdict(found)}
        yield shares.described(found)
    text = json.dumps(head | {"explanations": content} | told, indent=1, ensure_ascii=False)
    files.replaced(out / "explanation.json", text)


def _entry(source: Path | None, names: Sequence[str], images: Sequence[str]) -> Entry:
    """The one case that is explained, called by the name of its file.

    Raises:
        Problem: nothing is given, or a path beside named images.
    """
    if (source is None) == (not images):
        what = "no image is given" if source is None else "an image is given twice, as a path and with --image"
        raise Problem(what, fix="give one path, or --image NAME=FILE for each of several modalities")
    entry = layouts.by_modality(names, images) if source is None else layouts.single(source)
    path = next(iter(entry.images.values())).path
    return replace(entry, id=path.name, patient=path.name)


def _fitting(asked: Asked) -> list[str]:
    names = catalog.names("explanations")
    return [name for name in names if catalog.find("explanations", name).available(asked.targets[0])]


def _named(made: Model, name: str) -> Finding:
    """The finding of that name in the first task that knows it."""
    for task, question in made.recipe.tasks.items():
        if name in question.classes:
            return Finding(task, name)
    known = ", ".join(label for question in made.recipe.tasks.values() for label in question.classes)
    raise Problem(f"the model knows no finding {name!r}", fix=f"it knows {known}")
