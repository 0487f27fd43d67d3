"""Cohorts: who is in them, and which part of them may be used for what."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osler import draws, layouts
from osler.case import Entry, Finding, Question
from osler.problem import Problem


@dataclass(frozen=True)
class Cohort:
    """Entries that were read from one place.

    Attributes:
        root: the folder or file.
        entries, questions, grouping, problems, notes, modality: see :class:`osler.layouts.Listing`.
        whole: the first question about the whole image that the cohort has, asked or not.
    """

    root: Path
    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]
    grouping: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    modality: str = ""
    whole: Question | None = None

    @property
    def balanced_by(self) -> Question:
        """Of its answers each part and fold has alike shares: the first asked about the whole image.

        Where only places are asked for it is ``whole``: so a model of them has the parts of one of the
        cohort's first class.
        """
        asked = next((question for question in self.questions if not question.dense), None)
        return asked or self.whole or self.questions[0]


@dataclass(frozen=True)
class Part:
    """Some entries of a cohort, kept apart from the others by its type."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def patients(self) -> int:
        return len({entry.patient for entry in self.entries})


class Training(Part):
    """Weights and normalisation are fitted on these, and on nothing else."""


class Validation(Part):
    """Chooses when to stop; nothing is fitted on it."""


class Calibration(Part):
    """Temperatures, thresholds, conformal sets and the novelty gate are fitted on these."""


class Test(Part):
    """Touched once, by ``evaluate``."""

    __test__ = False


@dataclass(frozen=True)
class Splits:
    """A cohort in its four parts; a patient stands in one of them only."""

    training: Training
    validation: Validation
    calibration: Calibration
    test: Test
    notes: tuple[str, ...] = ()


def read(path: Path, cohort_file: Path | None = None) -> Cohort:
    """Lists a cohort in any layout of ``osler.layouts``; no pixels are read.

    Raises:
        Problem: there is no such folder or file, or nothing in it that can be used.
    """
    if not path.exists():
        raise Problem("there is no such file or folder", path=path, fix="check the path")
    listing = layouts.read(path, cohort_file)
    if not listing.entries:
        first = f" (the first: {listing.problems[0].clause})" if listing.problems else ""
        raise Problem(f"no usable case was found{first}", path=path, fix="see the docs page on cohorts")
    return Cohort(
        path, listing.entries, listing.questions, listing.grouping, listing.problems, listing.notes, listing.modality
    )


def asking(found: Cohort, tasks: object) -> tuple[Cohort, list[str]]:
    """The cohort with the questions that a model shall answer, and what is to be said about the others.

    Args:
        found: the cohort.
        tasks: a name, a list of names, or ``all``; anything else asks what has an answer for the whole image, or,
            where nothing has, the first of what asks where something is.

    Raises:
        Problem: there is no such question.
    """
    if tasks == "all":
        return found, []
    found = replace(found, whole=next((question for question in found.questions if not question.dense), None))
    if isinstance(tasks, str | list | tuple):
        names = [tasks] if isinstance(tasks, str) else [str(name) for name in tasks]
        known = {question.task: question for question in found.questions}
        for name in names:
            if name not in known:
                raise Problem(
                    f"nothing is known about {name!r}", path=found.root, fix=f"the cohort has {', '.join(known)}"
                )
        return replace(found, questions=tuple(known[name] for name in names)), []
    if isinstance(tasks, Mapping):
        named = tuple(question for question in found.questions if question.task in tasks)
        # A name that nobody knows is told by whoever reads the tables.
        return replace(found, questions=named) if len(named) == len(tasks) > 0 else found, []
    whole = tuple(question for question in found.questions if not question.dense)
    asked = whole or found.questions[:1]
    left = [question.task for question in found.questions if question not in asked]
    notes = (
        [f"not asked: {', '.join(left)}; set tasks={left[0]} for a model of it, tasks=all to link them"]
        if left
        else []
    )
    return replace(found, questions=asked), notes


def label_of(entry: Entry, question: Question) -> str:
    """The label as one word for counting and stratifying; empty where unknown.

    Of what lies somewhere, the classes that are there, ``nothing``, or ``outlined`` where only the pixels tell.
    """
    stated = [f for f in entry.findings if f.task == question.task]
    if question.kind == "regression":
        return "known" if any(f.value is not None for f in stated) else ""
    if question.dense:
        if any(outline.task == question.task for outline in entry.outlines):
            return "outlined"
        return "+".join(sorted({f.name for f in stated if f.probability})) or ("nothing" if stated else "")
    return "+".join(sorted(f.name for f in stated if f.probability == 1))


def is_known(entry: Entry, question: Question) -> bool:
    """Whether anything is stated about it, be it that there is nothing."""
    said = {finding.task for finding in entry.findings} | {outline.task for outline in entry.outlines}
    return question.task in said


Groups = list[tuple[str, list[Entry]]]


def _groups(entries: Sequence[Entry], question: Question, seed: int) -> Groups:
    """Patients with their most frequent label, in a random order that alternates between the labels."""
    by_patient: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_patient[entry.patient].append(entry)
    # Findings are shared by cases that are labelled alike.
    said = {id(entry.findings): entry for entry in entries}
    word = {key: label_of(entry, question) for key, entry in said.items()}
    by_label: dict[str, list[list[Entry]]] = defaultdict(list)
    for patient in sorted(by_patient):
        labels = [word[id(entry.findings)] for entry in by_patient[patient]]
        by_label[max(set(labels), key=lambda label: (labels.count(label), label))].append(by_patient[patient])
    placed = []
    for number, label in enumerate(sorted(by_label)):
        groups = by_label[label]
        order = draws.permutation(draws.keys(seed, number), len(groups))
        placed += [((rank + 0.5) / len(groups), number, label, groups[i]) for rank, i in enumerate(order.tolist())]
    # No two have both the same place and the same label: groups are never compared.
    return [(label, group) for _, _, label, group in sorted(placed)]


def _take(groups: Groups, share: float) -> tuple[list[Entry], list[Entry]]:
    """About ``share`` of the patients of each label, and the rest; one patient at least stays."""
    taken: list[Entry] = []
    rest: list[Entry] = []
    seen: Counter[str] = Counter()
    for label, group in groups:
        count = seen[label]
        seen[label] += 1
        chosen = int((count + 1) * share + 0.5) > int(count * share + 0.5)
        (taken if chosen else rest).extend(group)
    return (taken, rest) if rest else ([], taken)


def split(cohort: Cohort, *, validation: float, calibration: float, test: float, seed: int = 0) -> Splits:
    """The parts that the cohort names itself; what it does not name is taken by patient.

    A calibration part is half of a given validation part of 400 patients or more, else a share of training; where no
    validation is asked for (0), it is all of the given one.
    A test part is taken only where the cohort names no parts at all.

    Raises:
        Problem: one patient stands in two given parts, or nothing is left to train on.
    """
    question = cohort.balanced_by
    roles: dict[str, set[str]] = defaultdict(set)
    for entry in cohort.entries:
        roles[entry.patient].add(entry.split or "train")
    torn = [patient for patient, found in roles.items() if len(found) > 1]
    if torn and cohort.grouping:
        raise Problem(
            f"{len(torn)} patients stand in two splits ({cohort.grouping})",
            path=cohort.root,
            fix="give each patient to one split",
        )
    named = {role: [e for e in cohort.entries if e.split == role] for role in ("validation", "calibration", "test")}
    train = [e for e in cohort.entries if e.split in (None, "train")]
    given = any(entry.split for entry in cohort.entries)
    notes = []
    if not given and test > 0:
        named["test"], train = _take(_groups(train, question, seed), test)
        notes.append(f"no test part is given: {len(named['test'])} cases were held out by patient")
    if not named["validation"] and validation > 0:
        named["validation"], train = _take(_groups(train, question, seed + 1), validation)
    if named["validation"] and validation == 0 < calibration and not named["calibration"]:
        named["calibration"], named["validation"] = named["validation"], []
        notes.append("the given validation part is used for calibration: nothing is chosen by it")
    if not named["calibration"] and calibration > 0:
        groups = _groups(named["validation"], question, seed + 2)
        if given and len(groups) >= 400:
            named["calibration"], named["validation"] = _take(groups, 0.5)
            notes.append("half of the given validation part is used for calibration")
        else:
            named["calibration"], train = _take(_groups(train, question, seed + 2), calibration)
    if not train:
        raise Problem("no case is left to train on", path=cohort.root, fix="add cases or lower the held-out shares")
    return Splits(
        Training(tuple(train)),
        Validation(tuple(named["validation"])),
        Calibration(tuple(named["calibration"])),
        Test(tuple(named["test"])),
        tuple(notes),
    )


def folds(
    entries: Sequence[Entry], question: Question, count: int, seed: int = 0
) -> list[tuple[Training, Calibration]]:
    """``count`` pairs of what is trained on and what is left out, by patient, stratified by label.

    Raises:
        Problem: there are fewer patients than folds.
    """
    groups = _groups(entries, question, seed)
    if len(groups) < count:
        raise Problem(f"there are {len(groups)} patients for {count} folds", fix="use fewer folds or more patients")
    # Label by label, so that each fold gets its share of each; the count goes on from one label to the next.
    by_label = sorted(range(len(groups)), key=lambda i: (groups[i][0], i))
    place = {i: rank % count for rank, i in enumerate(by_label)}
    return [
        (
            Training(tuple(e for i, (_, group) in enumerate(groups) if place[i] != fold for e in group)),
            Calibration(tuple(e for i, (_, group) in enumerate(groups) if place[i] == fold for e in group)),
        )
        for fold in range(count)
    ]


def join(entries: Sequence[Entry], copies: Sequence[Sequence[int]], *, folded: bool) -> tuple[tuple[Entry, ...], int]:
    """Copies, and with them their patients, become one group: in each given part, or in all that is folded.

    Args:
        entries: all cases.
        copies: rows of one picture, a group each.
        folded: folds deal the named parts anew, all but the test part.

    Returns:
        The entries with their groups as patients, and how many are copies of another one in their part.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            # Halved at each visit: else a file under many names makes a chain that every case walks along.
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    joined = 0
    for rows in copies:
        first: dict[str, str] = {}
        for entry in (entries[row] for row in rows):
            part = "test" if entry.split == "test" else "pool" if folded else entry.split or "train"
            joined += part in first
            parent[root(first.setdefault(part, entry.patient))] = root(entry.patient)
    kept = {"test"} if folded else {"train", "validation", "calibration", "test"}
    groups = ((e, root(e.patient), e.split if e.split in kept else None) for e in entries)
    made = (e if (e.patient, e.split) == (p, s) else replace(e, patient=p, split=s) for e, p, s in groups)
    return tuple(made), joined


def apart(splits: Splits, copies: Sequence[set[str]]) -> tuple[Splits, dict[str, int]]:
    """The same splits without cases whose copy stands in a part that is held out from theirs.

    A copy of a test case leaves the other three; one of a validation case, which the cohort may have named itself,
    calibration and training; one of a calibration case training.

    Args:
        splits: the parts.
        copies: ids of the cases that hold one picture, a set each.

    Returns:
        The splits, and how many cases left which part.
    """
    held = {entry.id for entry in splits.test.entries}
    left: dict[str, int] = {}

    def kept(role: str, part: Part) -> tuple[Entry, ...]:
        twice: set[str] = set().union(*(ids for ids in copies if ids & held))
        entries = tuple(entry for entry in part.entries if entry.id not in twice)
        if len(entries) < len(part):
            left[role] = len(part) - len(entries)
        held.update(entry.id for entry in part.entries)
        return entries

    validation = Validation(kept("validation", splits.validation))
    calibration = Calibration(kept("calibration", splits.calibration))
    training = Training(kept("training", splits.training))
    return Splits(training, validation, calibration, splits.test, splits.notes), left


def _place(finding: Finding) -> tuple[object, ...]:
    mask, box = finding.mask, finding.box
    drawn = "" if mask is None else hashlib.sha256(repr(mask.start).encode() + mask.array.tobytes()).hexdigest()
    return () if box is None and mask is None else (finding.frame, box and (box.start, box.stop), drawn)


def _outlined(entry: Entry) -> str:
    """What the files say that outline something: their bytes."""
    digests = []
    for outline in entry.outlines:
        path = outline.source.path
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        content = "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file())
        digests.append(f"|{outline.task}|{outline.values}|{content}")
    return "".join(sorted(digests))


def digest(entries: Sequence[Entry], pixels: Sequence[str]) -> str:
    """SHA-256 of a cohort: of its pixels and labels, in whatever order and under whatever names they come."""
    different = {id(e.findings): e.findings for e in entries}
    said = {
        k: str(sorted((f.task, f.name, f.probability, f.value, *_place(f)) for f in v)) for k, v in different.items()
    }
    rows = sorted(f"{p}|{said[id(e.findings)]}{_outlined(e)}" for e, p in zip(entries, pixels, strict=True))
    total = hashlib.sha256()
    for number, row in enumerate(rows):
        total.update(f"\n{row}".encode() if number else row.encode())
    return total.hexdigest()
