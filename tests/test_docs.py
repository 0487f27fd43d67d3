"""The documentation is true: its code runs, its commands parse, its links and files exist, nothing is left out."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from osler import catalog, recipe
from osler.case import Question
from osler.cli import app
from osler.layouts import cohort_toml
from osler.pages.wording import FIGURES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def outside_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [
        "tutorial.md",
        "tutorial-segmentation.md",
        "tutorial-detection.md",
        "tutorial-linked.md",
        "tutorial-person.md",
        "tutorial-modalities.md",
    ],
)
def test_the_tutorials_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    found = blocks(ROOT / "docs" / page, "python")
    assert found
    names: dict[str, object] = {"__name__": "tutorial"}
    for number, block in enumerate(found, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
    assert (tmp_path / "evaluation" / "evaluation.html").exists()
    assert (tmp_path / "run" / "training.html").exists()


# --- commands ---------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Every ``osler ...`` of a code block or of a cell of a table."""
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4}|\$ )?(osler [a-z].*)$", text, re.MULTILINE):
            yield name_of(page), line.partition("  #")[0]
        for line in re.findall(r"`(osler [a-z-]+ [^`]+)`", text):
            yield name_of(page), line


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_commands_parse(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[-1] == "--help":
        app.parse_args(words[:-2] or ["doctor"], exit_on_error=False, print_error=False)
        return
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == words[0].replace("-", "_")
    for setting in bound.arguments.get("settings", ()):
        if not setting.startswith("tasks="):  # names of the cohort's own
            # One setting may need another of the same command, as a frozen backbone needs weights.
            others = [s for s in bound.arguments["settings"] if s.startswith("network.weights=")]
            recipe.build(over({}, recipe.settings((*{*others, setting},))))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_commands_exist(page: Path) -> None:
    for name in re.findall(r"`osler ([a-z-]+)`", page.read_text("utf-8")):
        assert name in app, name


def test_there_are_commands() -> None:
    named = {line.split()[1] for _, line in commands()}
    assert named >= {"train", "evaluate", "diagnose", "explain", "serve", "import-weights"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`|^(?: {4})?make ([a-z-]+)$", page.read_text("utf-8"), re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


# --- files and links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], (
                target
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    """Paths in backticks with a folder in them, and source files by their name alone."""
    text = outside_code(page)
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|html|json|md|css))`", text):
        if not re.match(r"(run|cohort|images|diagnoses|evaluation|demo)/|.*/NAME.py", path):
            assert any((base / path).exists() for base in (ROOT, ROOT / "src" / "osler", ROOT / "docs")), path
    for path in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / "src" / "osler" / path).exists() or (ROOT / "tests" / path).exists(), path


def test_the_tree_of_the_architecture_is_whole() -> None:
    """ARCHITECTURE.md says one line about every file, and about no file that is not there."""
    text = "\n".join(blocks(ROOT / "ARCHITECTURE.md", "text"))
    listed = re.findall(r"^(\S+\.(?:py|html|css))\s{2,}\S", text, re.MULTILINE)
    source = ROOT / "src" / "osler"
    there = [
        path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix in (".py", ".html", ".css")
    ]
    assert sorted(listed) == sorted(there)


VARIANTS = ["backbones", "poolings", "sequences", "fusion", "transforms", "explanations", "tasks", "preparations"]


@pytest.mark.parametrize("folder", VARIANTS)
def test_the_concepts_page_names_every_variant(folder: str) -> None:
    text = (ROOT / "docs" / "concepts.md").read_text("utf-8")
    assert not [name for name in catalog.names(folder) if f"{folder}/{name}.py" not in text]


@pytest.mark.parametrize("folder", ["formats", "layouts"])
def test_the_cohorts_page_names_every_variant(folder: str) -> None:
    text = (ROOT / "docs" / "cohorts.md").read_text("utf-8")
    assert not [name for name in catalog.names(folder) if f"{folder}/{name}" not in text]


def test_the_readme_shows_its_pictures() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text("utf-8"))
    assert pictures
    assert all((ROOT / picture).stat().st_size < 300_000 for picture in pictures)


# --- recipes and figures ----------------------------------------------------------------------------------


def over(base: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """What a plan fills in at the least, under ``given``."""
    asked = {"label": {"kind": "multiclass", "classes": ["a", "b"]}}
    network = given.get("network", {})
    assert isinstance(network, dict)
    default = {"vgg": "depth", "resnet": "width"}
    backbone = next((name for name, key in default.items() if key in network.get("options", {})), "resnet")
    least = {"image": {"size": [1, 224, 224]}, "tasks": asked, "network": {"backbone": backbone}, **base}
    return recipe.merge(least, given)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_are_valid(path: Path) -> None:
    built = recipe.build(over({}, recipe.read(path)))
    text = (ROOT / "recipes" / "README.md").read_text("utf-8")
    assert f"]({path.name})" in text
    assert built.network.backbone == path.stem


def test_the_reference_recipe_is_the_textbook_network() -> None:
    """10 epochs of 32, Adam at its usual rate, and nothing that the listing does not have."""
    built = recipe.build(over({}, recipe.read(ROOT / "recipes" / "reference_cnn.toml")))
    plan = built.training
    assert (plan.epochs, plan.batch, plan.optimizer, plan.learning_rate) == (10, 32, "adam", 0.001)
    assert (plan.schedule, plan.ema, plan.smoothing, plan.balance, plan.clip) == ("constant", 0, 0, 0, 0)
    assert all(options["probability"] == 0 for options in built.augmentation.values())
    module = catalog.find("backbones", built.network.backbone)
    network = module.build(module.Options(), channels=built.image.channels, dims=2, size=built.image.size[1:])
    assert sum(p.numel() for p in network.parameters()) + 128 * 10 + 10 == 23_908_682


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "cohorts").glob("*.toml")), ids=name_of)
def test_cohort_files_are_valid(path: Path) -> None:
    cohort_toml._parsed(path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_in_the_pages_is_valid(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        if "table" in tomllib.loads(block):
            (tmp_path / "cohort.toml").write_text(block)
            cohort_toml._parsed(tmp_path / "cohort.toml")
        else:
            recipe.build(over({}, tomllib.loads(block)))


def test_the_recipes_page_names_every_key() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    sections = (
        recipe.ImagePlan,
        recipe.NetworkPlan,
        recipe.CovariatePlan,
        recipe.TrainingPlan,
        recipe.SplitPlan,
        recipe.InferencePlan,
        recipe.PatchPlan,
        recipe.LinkPlan,
        Question,
    )
    wanted = [f.name for section in sections for f in fields(section)]
    for folder in ("backbones", "poolings", "sequences", "fusion", "transforms"):
        for name in catalog.names(folder):
            wanted += [name, *(f.name for f in fields(catalog.find(folder, name).Options))]
    assert not [name for name in wanted if f"`{name}`" not in text]


def test_the_evaluation_page_names_every_figure() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text("utf-8")
    assert not [name for name in FIGURES if f"`{name}`" not in text]
