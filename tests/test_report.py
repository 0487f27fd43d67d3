import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import dense_rows, dense_scoring, report
from osler.case import Answer, Box, Case, Diagnosis, Finding, Mask, Novelty, Question
from osler.image import Image
from osler.pages import overlays
from osler.predictions import Predictions
from osler.scoring import compare, score

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)> $\\frac{"
VOID = {"meta", "link", "img", "input", "br", "hr"}
LOADING = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.open, self.crossed = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def pictures(self):
        for _, attributes in (entry for entry in self.tags if entry[0] == "img"):
            encoded = attributes["src"].removeprefix("data:image/png;base64,")
            yield np.asarray(Pillow.open(io.BytesIO(base64.b64decode(encoded))))


def assert_safe(page):
    """Whole, alone and still: nothing unclosed, nothing loaded from elsewhere, nothing that runs."""
    assert page.open == []
    assert page.crossed == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in LOADING:
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/png;base64,", "#")) or ":" not in value, value
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert "http" not in page.source.replace("http-equiv", "")
    assert "not a medical device" in page.words


def predictions(classes=("normal", "pneumonia"), n=60, kind="multiclass", **more):
    random = np.random.default_rng(0)
    target = random.integers(0, len(classes), n)
    logits = random.normal(size=(n, len(classes))) + 2 * (target[:, None] == np.arange(len(classes)))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = {
        "cases": tuple(f"case {i}" for i in range(n)),
        "patients": tuple(f"patient {i}" for i in range(n)),
        "question": Question("label", kind, classes),
        "target": target.astype(float),
        "probability": p,
        "abstained": random.random(n) < 0.2,
        "sets": p > 0.1,
        "coverage": 0.9,
        "metadata": {"sex": ("F", "M") * (n // 2)},
    }
    return Predictions(**(given | more))


def evaluation(given, **more):
    return {
        "schema_version": 1, "date": "2026-01-02T03:04:05+00:00", "model": "0123456789abcdef" * 4, "cohort": "c" * 64,
        "part": "test", "times_evaluated": 1, "cases": len(given.cases), "patients": len(given.cases), "notes": [],
        "tasks": {given.question.task: score(given, draws=20)},
    } | more  # fmt: skip


def diagnosis(**more):
    findings = (
        Finding("label", "normal", by="model", probability=0.07, interval=(0.03, 0.13)),
        Finding("label", "pneumonia", by="model", probability=0.93, interval=(0.87, 0.97)),
    )
    answer = Answer("label", "multiclass", findings, ("pneumonia",), ("pneumonia",), 0.9)
    given = {
        "case": "a1b2", "answers": {"label": answer}, "novelty": Novelty(1.2, 1.9, 0.41), "abstained": False,
        "reasons": (), "checked": ("The image has one channel",), "notes": ("no spacing",), "model": "f" * 64,
        "engine": "torch", "precision": "float32", "seconds": 0.25, "peak_mib": 300.0,
    }  # fmt: skip
    return Diagnosis(**(given | more))


def withheld(**more):
    answer = replace(diagnosis().answers["label"], decision=(), prediction_set=("normal", "pneumonia"))
    return diagnosis(answers={"label": answer}, abstained=True, reasons=("The image is strange",), **more)


GREY = np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def test_an_evaluation_shows_its_figures_and_its_images(tmp_path):
    given = predictions(images=lambda row: np.full((20, 30), row, np.uint8))
    content = evaluation(given)
    report.evaluation_page(content, [given], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    metrics = content["tasks"]["label"]["metrics"]
    assert f"{metrics['auroc']['value']:.3f}" in page.words
    assert f"{100 * metrics['sensitivity']['low']:.1f} %" in page.words.replace("\xa0", " ")
    assert "0123456789abcdef" * 4 in page.words
    # The first picture is of the case whose true class got the least probability.
    hard = given.probability[np.arange(60), given.target.astype(int)].argmin()
    assert np.array_equal(next(page.pictures()), np.full((20, 30), hard))
    assert f"case {hard}" in page.words


DENSE = {
    "mask": Question("mask", "segmentation", ("organ", "<b>lesion</b>"), values=((1,), (2,))),
    "boxes": Question("boxes", "detection", ("nodule", "<b>mass</b>")),
}


def answered(task, number):
    """A case with a square of each class, and an answer that is off by so many pixels."""
    question, findings, said = DENSE[task], [], []
    labels = np.zeros((1, 1, 40, 40), np.uint8)
    for k, name in enumerate(question.classes):
        here, there = (Box((0, 2 + d, 2 + 18 * k), (1, 14 + d, 14 + 18 * k)) for d in (0, number))
        for place, into, by in ((here, findings, "reader"), (there, said, "model")):
            full = np.zeros((1, 40, 40), bool)
            full[0, int(place.start[1]) : int(place.stop[1]), int(place.start[2]) : int(place.stop[2])] = True
            if by == "reader":
                labels[0, full] = k + 1
            mask = Mask.cropped(full) if task == "mask" else None
            into.append(Finding(task, name, by, 1.0 if by == "reader" else 0.9, box=place, mask=mask))
    image = Image(np.full((1, 1, 1, 40, 40), 7, np.uint8))
    maps = {task: labels} if task == "mask" else {}
    case = Case(f"case {number}", f"patient {number}", {}, () if maps else tuple(findings), maps=maps)
    return case, image, Answer(task, question.kind, tuple(said), question.classes, threshold=0.5), question


def test_an_evaluation_of_places_shows_cases_and_curves(tmp_path):
    tasks, examples = {}, {}
    for task, question in DENSE.items():
        given = [answered(task, number) for number in range(9)]
        rows = [dense_rows.of_case(*one)[0] for one in given]
        tasks[task] = dense_scoring.summary(rows, question, draws=50)
        pairs = zip(given, rows, strict=True)
        examples[task] = [overlays.example(*one, dense_rows.quality(row)) for one, row in pairs]
    content = evaluation(predictions()) | {"tasks": tasks, "cases": 9, "patients": 9}
    report.evaluation_page(content, [], tmp_path / "page.html", examples)
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    for task, key in (("mask", "dice"), ("boxes", "map50"), ("boxes", "cpm")):
        assert f"{tasks[task]['metrics'][key]['value']:.3f}" in page.words
    words = page.words.replace("\xa0", " ")
    assert all(title in words for title in ("Best", "Median", "Worst", "Found against false", "Precision and recall"))
    # of each task the three best are the first, off by the least
    assert [words.index(f"case {number}") for number in (0, 8)] == sorted(words.index(f"case {n}") for n in (0, 8))
    assert page.source.count('class="overlay"') == 18
    assert "<b>" not in page.source.replace('<b style="left', "")


def test_the_hundredth_look_at_a_cohort_is_warned_of(tmp_path):
    given = predictions()
    for times in (1, 100):
        report.evaluation_page(evaluation(given, times_evaluated=times), [], tmp_path / "page.html")
        assert ("was evaluated 100 times" in Page(tmp_path / "page.html").words) == (times == 100)


def regression():
    random = np.random.default_rng(1)
    target = random.normal(50, 10, 40)
    value = (target + random.normal(0, 3, 40))[:, None]
    return predictions(
        ("age",), 40, target=target, probability=value, question=Question("age", "regression", ("age",), "years"),
        sets=None, low=value - 5, high=value + 5,
    )  # fmt: skip


def multilabel():
    random = np.random.default_rng(2)
    target = (random.random((60, 2)) < 0.5).astype(float)
    target[:9] = np.nan
    p = random.random((60, 2))
    return predictions(("effusion", "nodule"), kind="multilabel", target=target, probability=p, sets=p > 0.1)


MANY = {
    "three classes": lambda: predictions(("a", "b", "c")),
    "ordinal": lambda: predictions(("mild", "moderate", "severe", "worst"), kind="ordinal"),
    "multilabel": multilabel,
    "regression": regression,
    "one class": lambda: predictions(target=np.zeros(60)),
    "nothing known": lambda: predictions(target=np.full(60, np.nan)),
    "all withheld": lambda: predictions(abstained=np.ones(60, bool)),
    "one case": lambda: predictions(n=2).take(np.array([True, False])),
    "chinese": lambda: predictions(("正常", "肺炎")),
    "thirty classes": lambda: predictions(tuple(f"class number {i}" for i in range(30)), n=90, metadata={}),
}


@pytest.mark.parametrize("name", MANY)
def test_every_kind_of_evaluation_makes_a_page(name, tmp_path):
    given = MANY[name]()
    report.evaluation_page(evaluation(given), [given], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    assert not re.search(r"\bnan\b|\bNone\b", page.words)


def test_two_models_are_set_side_by_side(tmp_path):
    given = predictions()
    content = evaluation(given)
    content["comparison"] = {"model": "9" * 64, "tasks": {"label": compare(given, given, draws=20)}}
    report.evaluation_page(content, [given], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    assert "Against another model" in page.words


def test_names_are_text_and_never_markup(tmp_path):
    given = predictions((EVIL, "b"), cases=tuple(f"{EVIL}{i}" for i in range(60)), metadata={EVIL: (EVIL, "x") * 30})
    content = evaluation(given, notes=[EVIL], grouping=EVIL, part=EVIL)
    report.evaluation_page(content, [given], tmp_path / "evaluation.html")
    finding = Finding(EVIL, EVIL, by="model", probability=0.5, interval=(0.4, 0.6))
    answer = Answer(EVIL, "multiclass", (finding,), (EVIL,), (EVIL,), 0.9)
    evil = diagnosis(case=EVIL, answers={EVIL: answer}, checked=(EVIL,), notes=(EVIL,), engine=EVIL)
    report.diagnosis_page(evil, GREY, {EVIL: (COLOUR, EVIL)}, tmp_path / "diagnosis.html")
    report.diagnosis_page(replace(evil, abstained=True, reasons=(EVIL,)), GREY, {}, tmp_path / "withheld.html")
    pages = {EVIL: "javascript:alert(1)"}
    report.diagnoses_page([evil, replace(evil, abstained=True, reasons=(EVIL,))], tmp_path / "list.html", pages)
    report.training_page(
        [{"epoch": 1, EVIL: 2.0, "x": EVIL}], f"a = 1 # {EVIL}\n[{EVIL}]", [EVIL], tmp_path / "t.html"
    )
    for path in tmp_path.glob("*.html"):
        page = Page(path)
        assert_safe(page)
        assert "alert('x')" in page.words, path.name


def test_a_diagnosis_states_its_decision_first(tmp_path):
    report.diagnosis_page(diagnosis(), GREY, {"heat": (COLOUR, "what it rests on")}, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    words = page.words.replace("\xa0", " ")
    assert words.index("pneumonia") < words.index("93.0 %") < words.index("41.0 %") < words.index("f" * 64)
    for expected in ("87.0 % to 97.0 %", "only pneumonia", "90 %", "what it rests on", "0.25 seconds", "300 MiB"):
        assert expected in words
    plain, overlay = page.pictures()
    assert np.array_equal(plain, GREY)
    assert np.array_equal(overlay, COLOUR)
    assert "Withheld" not in words


def test_a_withheld_decision_is_not_shown_but_the_reason_is(tmp_path):
    report.diagnosis_page(withheld(), GREY, {}, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    assert page.words.index("Withheld because the image is strange") < page.words.index("pneumonia")
    assert "not a negative answer" in page.words
    assert ("p", {"class": "verdict"}) not in page.tags


def test_a_number_is_stated_with_its_unit_and_interval(tmp_path):
    finding = Finding("age", "bone age", by="model", value=7.25, interval=(6.0, 8.5), unit="years")
    answer = Answer("age", "regression", (finding,), (), (), 0.9)
    report.diagnosis_page(diagnosis(answers={"age": answer}), GREY, {}, tmp_path / "page.html")
    words = Page(tmp_path / "page.html").words
    assert "7.250 years" in words
    assert "6.000 to 8.500" in words


def test_a_label_that_is_not_stated_is_not_called_absent(tmp_path):
    findings = tuple(Finding("f", name, by="model", probability=0.2) for name in ("effusion", "nodule"))
    answer = Answer("f", "multilabel", findings, (), ("effusion",), 0.9)
    report.diagnosis_page(diagnosis(answers={"f": answer}, novelty=None), GREY, {}, tmp_path / "page.html")
    words = Page(tmp_path / "page.html").words
    assert "Nothing above its threshold" in words
    assert "Cannot be ruled out" in words


def test_a_list_puts_withheld_cases_first_and_links_each(tmp_path):
    many = [diagnosis(case="aa1"), withheld(case="bb2"), diagnosis(case="cc3")]
    report.diagnoses_page(many, tmp_path / "page.html", {"aa1": "aa1/diagnosis.html"})
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    assert page.words.index("bb2") < page.words.index("aa1") < page.words.index("cc3")
    assert "3 cases, 1 withheld" in page.words
    assert [attributes["href"] for tag, attributes in page.tags if tag == "a"] == ["aa1/diagnosis.html"]


def test_a_training_shows_the_best_value_of_each_network_and_its_recipe(tmp_path):
    history = [
        {
            "member": str(m),
            "epoch": str(e),
            "loss": str(1 / (e + m)),
            "label.auroc": "" if e == 1 else str(0.5 + e / 10),
        }
        for m in (0, 1)
        for e in (1, 2, 3)
    ]
    recipe = '[image]\nsize = [1, 28, 28]  # the median\nname = "a # b"\n'
    report.training_page(history, recipe, ["small, so five folds"], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert_safe(page)
    assert "0.800" in page.words
    assert f"{(1 / 3 + 1 / 4) / 2:.3f}" in page.words
    assert "small, so five folds" in page.words
    comments = re.findall(r'<span class="why">(.*?)</span>', page.source)
    assert comments == ["# the median"]


def test_a_training_without_history_makes_a_page(tmp_path):
    report.training_page([], "", [], tmp_path / "page.html")
    assert_safe(Page(tmp_path / "page.html"))
