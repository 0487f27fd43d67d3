"""A recipe is data: strict TOML that says everything a training does, with a reason beside each choice."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pydantic

from osler import catalog, files, preparations, recipe_checks, subsets
from osler.case import Modality, Question
from osler.problem import Problem

Options = dict[str, bool | int | float | str]
Registration = Literal["", "rigid", "affine"]
# What to do about a value of a wrong type, by pydantic's name of the error.
_ADVICE = {"tuple_type": "write a list: [A, B]", "string_type": "write it in quotes, e.g. 'KEY=[\"1\"]'"}
NONE = "none"  # no augmentation at all, whatever would be planned


@dataclass(frozen=True)
class ImagePlan:
    """How pixels become the input of the network.

    Attributes:
        size: ``(depth, height, width)`` that the network sees.
        dims: 2: the network looks at each slice; 3: at the volume.
        channels: 1 grey or 3 colour; grey images are repeated where 3 are asked for.
        frames: moments of a sequence, evenly spaced; ``network.sequence`` says what is done with their features.
        fit: ``stretch`` to the size, or ``pad``: keep height to width (in millimetres where known).
        intensity: ``cohort``: mean and standard deviation of the training images; ``image``: each image's own
            (scanners without a common scale); ``window``: clipped to the 0.5 and 99.5 percentiles of the
            training images, then as ``cohort`` (CT; Isensee 2021).
        modality: DICOM's code; decides which augmentations and preparations are planned. Empty where it is unknown or
            mixed.
        modalities: names of the images of a case that the network is given, as the cohort names them; empty: a case
            has one image, whatever its name.
        prepare: files of ``preparations``: what is done to an image before it is resized, in this order.
        register: how each of several modalities is brought onto the first that is there; empty: as they lie.
    """

    size: tuple[int, int, int]
    dims: Literal[2, 3] = 2
    channels: int = 1
    frames: int = 1
    fit: Literal["stretch", "pad"] = "stretch"
    intensity: Literal["cohort", "image", "window"] = "cohort"
    modality: Modality = ""
    modalities: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    register: Registration = ""

    @property
    def stacked(self) -> int:
        """Moments that the network is given of a case: of one modality after the other."""
        return self.frames * max(1, len(self.modalities))


@dataclass(frozen=True)
class PatchPlan:
    """How a network that says where things are sees images that are larger than ``image.size``, its patch.

    Attributes:
        unit: ``mm``: every image knows its distances, and the network sees them alike; ``px``: nobody looks at them.
        spacing: ``(depth, height, width)`` of the grid that it works on, in that unit; 0 leaves an axis as it was
            read.
        longest: with ``px``: pixels of the longer of height and width on that grid, instead of ``spacing``; 0 leaves
            them as they are.
        per_case: patches of each case in an epoch.
        foreground: share of patches that are taken around something; of linked tasks also that of cases which say
            where anything is, at least.
        overlap: of neighbouring patches when an image is answered, as a share of the patch.
        mirror: whether the answers to mirrored images are averaged.
        deep: how many levels of the decoder have a loss of their own (Lee 2015); 1 is only the finest.
        largest: classes of which only the largest connected part is kept; decided on held-out cases.
    """

    unit: Literal["mm", "px"] = "px"
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    longest: int = 0
    per_case: int = 1
    foreground: float = 0.33
    overlap: float = 0.5
    mirror: bool = False
    deep: int = 1
    largest: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkPlan:
    """Which network.

    Attributes:
        backbone: a file of ``backbones``; ``options`` are its options.
        pooling: a file of ``poolings``, or ``neck``: the backbone's own flatten and dense layers.
        sequence: a file of ``sequences``: from the features of each moment to those of the case.
        dropout: before the last layer.
        weights: a file made by ``osler import-weights`` or ``osler pretrain`` to start from, else empty.
        fusion: a file of ``fusion``: how modalities and covariates are joined; of no account for one image alone.
        shared: one backbone for all modalities, or each its own.
    """

    backbone: str = "resnet"
    options: Options = field(default_factory=dict)
    pooling: str = "average"
    pooling_options: Options = field(default_factory=dict)
    sequence: str = "mean"
    sequence_options: Options = field(default_factory=dict)
    dropout: float = 0.2
    weights: str = ""
    fusion: str = "concat"
    fusion_options: Options = field(default_factory=dict)
    shared: bool = True


@dataclass(frozen=True)
class TrainingPlan:
    """How it is trained.

    Attributes:
        epochs: passes over the training cases; a time budget was turned into this number when planned.
        batch: cases a step.
        optimizer: ``adamw`` (Loshchilov 2019), ``adam`` (Kingma 2015) or ``sgd`` with momentum 0.9.
        learning_rate: highest value; ``backbone_rate`` times it for a backbone that starts from weights.
        freeze: the backbone stays as its weights are; features are computed once, of images that are not changed.
        schedule: ``cosine`` to zero after ``warmup`` (share of all steps), or ``constant``.
        clip: largest norm of the gradient of a step; 0 does not clip.
        ema: decay of the running average of the weights that is kept in the end; 0 keeps the last weights.
        smoothing: label smoothing.
        balance: 0 leaves the classes as frequent as they are, 1 gives each the same weight in the loss.
        patience: epochs without a better validation loss before it stops; 0 never stops early.
        folds: 0 trains one model beside a validation part; k trains k models, each without one fold.
        members: networks that are trained alike from different starts and answer together; 1 beside folds.
        precision: of the training step; ``channels_last``: memory layout. Both measured when planned.
        threads: of the machine it was planned on; the same bits come only with the same number.
        seed: of everything that is random.
    """

    epochs: int = 10
    batch: int = 32
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    backbone_rate: float = 1.0
    freeze: bool = False
    weight_decay: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    clip: float = 0.0
    ema: float = 0.99
    smoothing: float = 0.0
    balance: float = 0.0
    patience: int = 0
    folds: int = 0
    members: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class LinkPlan:
    """What the tasks of one network tell each other, where some ask of the whole image and some where something is.

    Attributes:
        classes_see_places: classes see the features of what is outlined or boxed, and how large it is.
        boxes_see_masks: boxes see the drafts of the outlines.
        masks_see_boxes, masks_see_classes: outlines are raised or lowered by boxes and by classes.
        consistency: weight of the loss of answers that contradict what must be so.
        complete: labels that follow from others are used: no outline where a class means that there is nothing,
            boxes around outlines, and around the middle of a box nothing.
        nothing: of each task that asks of the whole image, the classes with which nothing is there to be found.
        something: and those with which each task that asks where something is finds something.
    """

    classes_see_places: bool = True
    boxes_see_masks: bool = True
    masks_see_boxes: bool = True
    masks_see_classes: bool = True
    consistency: float = 0.1
    complete: bool = True
    nothing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    something: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CovariatePlan:
    """What is known of the person beside the image, and used. Without ``columns`` there is only the image.

    Attributes:
        columns: names of the covariates.
        kinds: ``number`` or ``category``, by name. This and what follows is learned from the training cases where it
            is not given, and stands in the recipe of the model.
        units: of numbers, by name.
        ranges: what a number may be, lowest and highest; another one is refused.
        seen: the smallest and the largest of the training cases.
        categories: which there are; another one counts as missing.
        hidden: share of the single values that a training does not see, others in each epoch.
    """

    columns: tuple[str, ...] = ()
    kinds: dict[str, Literal["number", "category"]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    seen: dict[str, tuple[float, float]] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: float = 0.1


@dataclass(frozen=True)
class SplitPlan:
    """Shares of the patients held out where the cohort does not say it itself."""

    validation: float = 0.15
    calibration: float = 0.15
    test: float = 0.2
    leaks: Literal["fix", "stop", "ignore"] = "fix"


@dataclass(frozen=True)
class InferencePlan:
    """How an answer is made sure.

    Attributes:
        views: slightly moved copies of each image whose answers are averaged; 1 uses the image alone.
        coverage: of the conformal sets.
        refusals: share of cases like the training cases that the novelty gate may refuse.
        threshold: where a yes is said in a two-class or multilabel answer: ``balanced`` (at the class's share of
            the calibration cases: best expected mean of sensitivity and specificity) or ``half`` (0.5).
    """

    views: int = 1
    coverage: float = 0.9
    refusals: float = 0.03
    threshold: Literal["balanced", "half"] = "balanced"


@dataclass(frozen=True)
class Recipe:
    """Everything that a training does. ``tasks`` and ``augmentation`` are keyed by name.

    An empty ``augmentation`` is written ``"none"``: a table without keys would be filled by the next plan.
    """

    image: ImagePlan
    tasks: dict[str, Question]
    network: NetworkPlan = field(default_factory=NetworkPlan)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    split: SplitPlan = field(default_factory=SplitPlan)
    inference: InferencePlan = field(default_factory=InferencePlan)
    augmentation: dict[str, Options] = field(default_factory=dict)
    patches: PatchPlan = field(default_factory=PatchPlan)
    links: LinkPlan = field(default_factory=LinkPlan)
    covariates: CovariatePlan = field(default_factory=CovariatePlan)

    @property
    def linked(self) -> bool:
        """Whether some tasks ask of the whole image and others where something is: then they are linked."""
        return self.dense and not all(question.dense for question in self.tasks.values())

    @property
    def inputs(self) -> int:
        """Channels that the backbone sees: where places are asked, all modalities are channels of one image."""
        return self.image.channels * (max(1, len(self.image.modalities)) if self.dense else 1)

    @property
    def moments(self) -> int | None:
        """How many moments of a sequence need to be read; ``None``, all, where places in every moment are asked."""
        return None if self.dense else self.image.frames

    @property
    def dense(self) -> bool:
        """Whether any task asks where something is: then the network sees patches."""
        return any(question.dense for question in self.tasks.values())


def read(path: Path) -> dict[str, Any]:
    """The content of a recipe file, not validated: it may leave out what the plan fills in.

    Raises:
        Problem: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Problem(f"the recipe cannot be read ({error.strerror})", path=path, fix="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"the recipe is not valid TOML ({error})", path=path, fix="correct that line") from error


def build(content: Mapping[str, Any]) -> Recipe:
    """Validates every key and value, down to the options of each variant.

    Raises:
        Problem: an unknown key (with the nearest known one), a wrong type or an impossible value.
    """
    _check_keys(content, Recipe, "")
    content = dict(content)
    content["tasks"] = {
        name: question if isinstance(question, Question) else {"task": name, **question}
        for name, question in content.get("tasks", {}).items()
    }
    if content.get("augmentation") == NONE:
        content["augmentation"] = {}
    recipe: Recipe = _validated(Recipe, content)
    options("backbones", recipe.network.backbone, recipe.network.options)
    if recipe.network.pooling != "neck":
        options("poolings", recipe.network.pooling, recipe.network.pooling_options)
    options("sequences", recipe.network.sequence, recipe.network.sequence_options)
    options("fusion", recipe.network.fusion, recipe.network.fusion_options)
    for name, given in recipe.augmentation.items():
        options("transforms", name, given)
    recipe_checks.check(recipe)
    preparations.check(recipe.image.prepare, dense=recipe.dense)
    subsets.check(recipe.image.modalities, covariates=bool(recipe.covariates.columns), linked=recipe.linked)
    return recipe


def options(folder: str, name: str, given: Mapping[str, Any]) -> Any:
    """The options of one variant, validated: an instance of the ``Options`` of its file."""
    schema = catalog.find(folder, name).Options
    _check_keys(given, schema, f"{name}.")
    return _validated(schema, dict(given), f"the option {{}} of {name}")


def _validated(schema: Any, content: Any, where: str = "{}") -> Any:
    """The content as this type; ``where`` says of a wrong value what it is, ``{}`` being its key."""
    try:
        return _reader(schema).validate_python(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        what = where.format(".".join(map(str, first["loc"]))).rstrip(".")
        fix = _ADVICE.get(first["type"], "correct it")
        raise Problem(f"in the recipe, {what} is wrong: {first['msg'].lower()}", fix=fix) from error


@cache
def _reader(schema: Any) -> Any:
    """Made once: a training reads the options of each transform in every step, and making one takes milliseconds."""
    return pydantic.TypeAdapter(schema)


def check_shape(content: Mapping[str, Any]) -> None:
    """Sections are tables, keys are known and values of their type: what can be told before the rest is planned.

    Raises:
        Problem: a section that is a plain value, an unknown key, or a value of a wrong type.
    """
    for key, value in content.items():
        if (key, value) == ("augmentation", NONE):
            continue
        if not isinstance(value, Mapping) and key in {f.name for f in fields(Recipe)}:
            fix = f"set a key in it, e.g. {key}.KEY=VALUE" + (", or write none" if key == "augmentation" else "")
            raise Problem(f"in the recipe, {key} = {value!r} is no table", fix=fix)
    variants = ("options", "pooling_options", "sequence_options", "fusion_options")
    for section, key in (("network", one) for one in variants):
        if not isinstance(content.get(section, {}).get(key, {}), Mapping):
            raise Problem(f"in the recipe, {section}.{key} is no table", fix=f"set {section}.{key}.NAME=VALUE")
    for key in ("tasks", "augmentation"):
        for name, value in content.get(key, {}).items() if content.get(key) != NONE else ():
            if not isinstance(value, Mapping | Question):
                raise Problem(f"in the recipe, {key}.{name} is no table", fix=f"set {key}.{name}.KEY=VALUE")
            if key == "tasks" and isinstance(value, Mapping):
                _check_keys(value, Question, f"tasks.{name}.")
    _check_keys(content, Recipe, "")
    for section, schema in get_type_hints(Recipe).items():
        for key, value in content.get(section, {}).items() if is_dataclass(schema) else ():
            _validated(get_type_hints(schema)[key], value, f"{section}.{key}.{{}}")


def _check_keys(content: Mapping[str, Any], schema: type, where: str) -> None:
    hints = get_type_hints(schema)
    for key, value in content.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(sorted(hints)) or 'none'}"
            raise Problem(f"the recipe has an unknown key {where}{key}", fix=known)
        if is_dataclass(hints[key]) and isinstance(value, Mapping) and isinstance(hints[key], type):
            _check_keys(value, hints[key], f"{where}{key}.")


def settings(words: tuple[str, ...]) -> dict[str, Any]:
    """``("epochs=5", "network.backbone=vgg")`` to a nested mapping.

    A key is written whole (``training.epochs``) or by its last part where only one section has it.

    Raises:
        Problem: not ``key=value``, or a key that no section or more than one has.
    """
    content: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise Problem(f"{word!r} is not a setting", fix="write key=value, e.g. epochs=5")
        path = _whole_key(key)
        place = content
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise Problem(f"{key} stands below {part}, which was set to {place!r}", fix="set one of the two")
        place[path[-1]] = _value(text)
    return content


def named_values(words: Sequence[str]) -> dict[str, Any]:
    """``("depth=34",)`` to ``{"depth": 34}``: options of one variant.

    Raises:
        Problem: not ``name=value``.
    """
    pairs = [word.partition("=") for word in words]
    wrong = [word for word, (name, equals, _) in zip(words, pairs, strict=True) if not equals or not name]
    if wrong:
        raise Problem(f"{wrong[0]!r} is not an option", fix="write name=value, e.g. depth=34")
    return {name: _value(text) for name, _, text in pairs}


def _whole_key(key: str) -> list[str]:
    parts = key.split(".")
    sections = {f.name: set(get_type_hints(f.type)) for f in fields(Recipe) if is_dataclass(f.type)}
    if parts[0] in {f.name for f in fields(Recipe)}:
        return parts
    owners = [section for section, names in sections.items() if parts[0] in names]
    if len(owners) == 1:
        return [owners[0], *parts]
    if owners:
        raise Problem(
            f"{key} stands in more than one section", fix=f"write one of {', '.join(f'{o}.{key}' for o in owners)}"
        )
    near = difflib.get_close_matches(parts[0], {name for names in sections.values() for name in names}, n=1)
    raise Problem(
        f"there is no setting {key!r}", fix=f"did you mean {near[0]}?" if near else "see recipe.toml of any run"
    )


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        # A shell takes the quotes of ["a", "b"] away.
        if text.startswith("[") and text.endswith("]") and not set('[]"') & set(text[1:-1]):
            return [word.strip() for word in text[1:-1].split(",") if word.strip()]
        return text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` wins, table by table; options of another variant than the base's replace, never mix.

    Raises:
        Problem: ``augmentation`` is none in one and a table in the other: of what it says, something would be lost.
    """
    result = dict(base)
    for key, value in over.items():
        if result.get(key) == NONE and isinstance(value, Mapping):
            raise Problem(f"in the recipe, {key} is none, and yet keys of it are set", fix="leave out one of the two")
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            below = dict(result[key])
            kinds = (
                ("backbone", "options"),
                ("pooling", "pooling_options"),
                ("sequence", "sequence_options"),
                ("fusion", "fusion_options"),
            )
            for choice, kept in kinds:
                if choice in value and value[choice] != below.get(choice):
                    below.pop(kept, None)
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain types only; ``build`` of it gives the same recipe."""
    content: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    content["augmentation"] = content["augmentation"] or NONE
    return content


def write(recipe: Recipe, reasons: Mapping[str, str], path: Path) -> None:
    """TOML with a comment beside each key that has a reason (keyed ``section.key``)."""
    files.replaced(path, to_toml(to_dict(recipe), reasons))


def to_toml(content: Mapping[str, Any], reasons: Mapping[str, str], where: str = "") -> str:
    """A nested mapping of plain types as TOML."""
    lines = []
    # TOML has no word for nothing: a key without a value is left out.
    plain = {key: value for key, value in content.items() if value is not None and not isinstance(value, Mapping)}
    for key, value in plain.items():
        # A column's name may hold anything, also the end of a line.
        reason = " ".join(reasons.get(f"{where}{key}", "").split())
        line = f"{_toml_key(key)} = {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{line}  # {reason}" if reason else line)
    for key, value in content.items():
        if isinstance(value, Mapping):
            reason = reasons.get(f"{where}{key}", "")
            head = f"\n[{where}{_toml_key(key)}]" + (f"  # {reason}" if reason else "")
            lines += [head, to_toml(value, reasons, f"{where}{_toml_key(key)}.").rstrip("\n")]
    return "\n".join(line for line in lines if line) + "\n"


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)
