"""nnU-Net raw and Medical Segmentation Decathlon: ``imagesTr``, ``labelsTr`` and ``dataset.json``, versions 1 and 2.

Version 2 (Isensee et al., nnU-Net ``documentation/dataset_format.md``): ``channel_names``, ``labels`` by name, with
lists of values for regions and ``ignore`` for pixels of which nothing is known, ``file_ending``. Version 1 and the
Decathlon (Antonelli et al., 2022): ``modality`` and ``labels`` by value.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osler.case import Entry, Outline, Question, Role, Source
from osler.layouts import Listing
from osler.problem import Problem

TASK = "mask"
_MODALITIES = {
    "CT": "CT",
    "MRI": "MR",
    "MR": "MR",
    "T1": "MR",
    "T2": "MR",
    "FLAIR": "MR",
    "US": "US",
    "ULTRASOUND": "US",
}
_CHANNEL = re.compile(r"_(\d{4})$")


def matches(path: Path) -> bool:
    """Whether there are a ``dataset.json`` and ``imagesTr``."""
    return path.is_dir() and (path / "dataset.json").is_file() and (path / "imagesTr").is_dir()


def read(path: Path) -> Listing:
    """The training cases, and the test cases where ``labelsTs`` has them outlined.

    Several channels stand under their names as several images; four-dimensional files of the Decathlon hold them
    along their last axis. The format knows no patients: each case counts as one.

    Raises:
        Problem: ``dataset.json`` is broken, or there is no case.
    """
    said = _Dataset.read(path / "dataset.json")
    problems: list[Problem] = []
    entries: list[Entry] = []
    notes = ["The format names no patients: each case was taken as a patient of its own."]
    tested = (path / "imagesTs").is_dir() and (path / "labelsTs").is_dir()
    entries += _cases(path, "Tr", said, "train" if tested else None, problems)
    if tested:
        entries += _cases(path, "Ts", said, "test", problems)
    elif (path / "imagesTs").is_dir():
        count = len(_files(path / "imagesTs", said.ending))
        notes.append(f"{count} files in imagesTs have no labels beside them (labelsTs) and were left out.")
    if not entries:
        first = f" (the first: {problems[0].clause})" if problems else ""
        what = f"imagesTr and labelsTr have no case in common{first}"
        raise Problem(what, path=path, fix=f"put the images there as CASE_0000{said.ending}")
    entries.sort(key=lambda entry: entry.id)
    return Listing(tuple(entries), (said.question,), "", tuple(problems), tuple(notes), said.modality)


@dataclass(frozen=True)
class _Dataset:
    """What ``dataset.json`` says."""

    question: Question
    channels: tuple[str, ...]
    ending: str

    @property
    def modality(self) -> str:
        codes = {_MODALITIES.get(name.upper().split("-")[0], "") for name in self.channels}
        return codes.pop() if len(codes) == 1 else ""

    @property
    def values(self) -> Mapping[int, str]:
        question = self.question
        return {v: name for name, vs in zip(question.classes, question.values, strict=True) for v in vs}

    @classmethod
    def read(cls, file: Path) -> "_Dataset":
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            channels = content.get("channel_names", content.get("modality", {"0": "image"}))
            labels = content["labels"]
            names = [str(channels[key]) for key in sorted(channels, key=int)]
            groups = dict(_groups(labels))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = "the file is not the dataset.json of nnU-Net: labels or channel names are missing or not numbered"
            raise Problem(what, path=file, fix="write it as nnU-Net documents it") from error
        ignore = groups.pop("ignore", None)
        groups = {name: values for name, values in groups.items() if values != (0,)}
        highest = max((value for values in [*groups.values(), ignore or ()] for value in values), default=0)
        if not groups or highest > 255 or min(value for values in groups.values() for value in values) < 0:
            what = "the labels are none besides the background, or beyond 255"
            raise Problem(what, path=file, fix="number the labels from 1")
        question = Question(
            TASK, "segmentation", tuple(groups), values=tuple(groups.values()), ignore=ignore[0] if ignore else None
        )
        return cls(question, tuple(names), str(content.get("file_ending", ".nii.gz")))


def _groups(labels: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and values of each label; version 1 has them the other way round."""
    for key, value in labels.items():
        if isinstance(value, str):
            yield value, (int(key),)
        elif isinstance(value, list):
            yield key, tuple(int(one) for one in value)
        else:
            yield key, (int(value),)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Files by name without their ending; hidden ones are left out."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        file.name.removesuffix(ending): file
        for file in found
        if file.name.endswith(ending) and not file.name.startswith(".")
    }


def _cases(path: Path, part: str, said: _Dataset, role: Role | None, problems: list[Problem]) -> Iterator[Entry]:
    drawn = _files(path / f"labels{part}", said.ending)
    given: dict[str, dict[int, Path]] = {}
    for stem, file in _files(path / f"images{part}", said.ending).items():
        number = None if stem in drawn else _CHANNEL.search(stem)
        given.setdefault(stem[: number.start()] if number else stem, {})[int(number[1]) if number else -1] = file
    for name in sorted(given.keys() | drawn.keys()):
        if name not in given:
            problems.append(
                Problem("the label has no image", path=drawn[name], root=path, fix=f"add it to images{part}")
            )
        elif name not in drawn:
            file = next(iter(given[name].values()))
            problems.append(
                Problem(
                    "the image has no label", path=file, root=path, fix=f"add {name}{said.ending} to labels{part}"
                )
            )
        else:
            try:
                images = _images(given[name], said)
            except Problem as problem:
                problems.append(problem)
                continue
            outline = Outline(TASK, Source(drawn[name]), said.values)
            yield Entry(name, name, images, split=role, outlines=(outline,))


def _images(files: Mapping[int, Path], said: _Dataset) -> Mapping[str, Source]:
    if len(said.channels) == 1 or (len(files) == 1 and not said.ending.startswith(".nii")):
        # Pictures in colour have their channels in one file.
        return {"image": Source(next(iter(files.values())))}
    if set(files) == {-1}:
        return {name: Source(files[-1], frame=i) for i, name in enumerate(said.channels)}
    absent = [i for i in range(len(said.channels)) if i not in files]
    if absent:
        what = f"the channel {said.channels[absent[0]]} ({absent[0]:04d}) of this case is missing"
        raise Problem(what, path=next(iter(files.values())), fix="add it")
    return {name: Source(files[i]) for i, name in enumerate(said.channels)}
