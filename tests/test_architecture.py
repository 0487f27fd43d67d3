"""The shape of the house, held by reading the sources: imports go down only, nothing is ever unpickled."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "osler"

# From the top down: a module imports from lower lines only, never from its own. A folder stands for all its files.
LAYERS = (
    ("cli",),
    ("server", "demonstration"),
    ("dense_evaluation",),
    ("dense_parts",),
    ("evaluation", "diagnoses", "estimator", "pretraining", "inspection", "ablation"),
    ("explanation", "answers"),
    ("targets",),
    ("diagnosis", "training"),
    ("places", "held_out"),
    ("localisation", "patch_planning", "frozen", "modalities", "run_folder"),
    ("patches", "link_planning"),
    ("volumes",),
    ("planning", "structures", "report", "novelty", "fitting", "writing", "shares", "sources"),
    ("pace", "checkpoints", "modality_planning", "covariate_planning"),
    ("asking",),
    ("model", "weights", "pages"),
    (
        "calibration",
        "cohort",
        "data",
        "augmentation",
        "decoder",
        "linking",
        "sliding",
        "appearance",
        "covariates",
        "normalisation",
    ),
    ("grid",),
    ("dense_scoring",),
    ("phantom_files",),
    ("dense_phantom", "loop_phantom", "modality_phantom"),
    ("layouts", "recipe", "scoring", "phantom", "registration"),
    ("outlines", "annotations", "visits"),
    (
        "tasks",
        "backbones",
        "poolings",
        "sequences",
        "fusion",
        "transforms",
        "explanations",
        "formats",
        "inspections",
        "preparations",
    ),
    (
        "measures",
        "curves",
        "predictions",
        "table",
        "anatomy",
        "store",
        "corruptions",
        "probe",
        "columns",
        "polygons",
        "dense_rows",
    ),
    ("doubt", "measurement", "display", "identity", "origins"),
    ("metrics", "case", "cache", "max_relu", "resampling"),
    (
        "image",
        "catalog",
        "machine",
        "pseudonym",
        "kernels",
        "allocator",
        "modality",
        "public_sets",
        "burned_in",
        "boxes",
        "subsets",
        "recipe_checks",
        "tensors",
        "files",
        "progress",
    ),
    ("problem", "draws"),
)
# Where a folder holds one variant a file, the files do not know each other.
VARIANTS = (
    "tasks",
    "backbones",
    "poolings",
    "sequences",
    "fusion",
    "transforms",
    "explanations",
    "formats",
    "layouts",
    "inspections",
    "preparations",
)
# The one import that goes up, inside of a function: models that say where things are have figures of their own.
UPWARD = {("evaluation", "dense_evaluation")}
# 450 lines are a habit. What is longer, and how long it may be.
LONG = {
    "case.py": 490,  # every noun
    "recipe.py": 515,  # every key
    "report.py": 480,
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> str:
    """``backbones.vgg``; a folder's ``__init__`` is the folder; that of the package is empty."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path, *, lazy: bool = True) -> Iterator[tuple[str, str]]:
    """What a file imports: outside packages as ``("torch", "")``, own modules as ``("osler", "backbones.vgg")``.

    Imports for type checkers only are left out; those inside of functions, too, unless ``lazy``.
    """
    modules = {module_of(file) for file in files()}
    for node in _executed(tree(path), lazy):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition(".")
                yield package, rest if package == "osler" else ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports whole"
            package, _, rest = (node.module or "").partition(".")
            for alias in node.names:
                deeper = f"{rest}.{alias.name}".strip(".")
                yield package, "" if package != "osler" else deeper if deeper in modules else rest


def _executed(node: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        yield child
        yield from _executed(child, lazy)


def rank(module: str) -> int:
    top = module.partition(".")[0]
    return next(number for number, names in enumerate(reversed(LAYERS)) if top in names)


def test_every_module_has_a_layer() -> None:
    listed = [name for names in LAYERS for name in names]
    there = {module_of(path).partition(".")[0] for path in files()} - {""}
    assert sorted(listed) == sorted(there)


def test_imports_go_down() -> None:
    wrong = []
    for path in files():
        here = module_of(path)
        for package, there in imports(path):
            top, other = here.partition(".")[0], there.partition(".")[0]
            if package != "osler" or not here or not there or top == other or (top, other) in UPWARD:
                continue
            if rank(there) >= rank(here):
                wrong.append(f"{here} imports {there}")
    assert not wrong, "; ".join(wrong)


def test_the_upward_import_waits_for_its_function() -> None:
    for above, below in UPWARD:
        assert ("osler", below) not in set(imports(SOURCE / f"{above}.py", lazy=False))
        assert ("osler", below) in set(imports(SOURCE / f"{above}.py"))


def test_variants_do_not_know_each_other() -> None:
    wrong = []
    for path in files():
        folder, _, name = module_of(path).partition(".")
        for package, there in imports(path):
            other, _, variant = there.partition(".")
            own = variant.partition(".")[0] == name.partition(".")[0]
            if package == "osler" and folder in VARIANTS and name and other == folder and variant and not own:
                wrong.append(f"{folder}.{name} imports {there}")
    assert not wrong, "; ".join(wrong)


def test_nothing_imports_in_a_circle() -> None:
    graph = {
        module_of(path): {there for package, there in imports(path, lazy=False) if package == "osler"}
        for path in files()
    }
    # A file may import from its own folder's __init__, which imports no file of it at the top.
    list(TopologicalSorter({here: there - {here} for here, there in graph.items()}).static_order())


def test_modules_without_networks_do_not_import_torch() -> None:
    checks = ("shortcuts", "headers", "covariates", "normalisation", "label_names", "mislabels")
    free = ("cohort", "data", "layouts", "formats", "scoring", "report", "phantom", "metrics", "recipe")
    free += tuple(f"inspections.{name}" for name in checks)
    program = f"import importlib, sys\nfor name in {free}: importlib.import_module('osler.' + name)\n"
    run(program + "sys.exit('torch' in sys.modules)")


def test_the_package_itself_costs_nothing() -> None:
    run("import sys, osler\nsys.exit(any(name in sys.modules for name in ('torch', 'numpy')))")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_help_does_not_import_torch(words: list[str]) -> None:
    run(
        "import sys\nfrom osler import cli\n"
        f"try:\n    cli.main({words})\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    )


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_are_there() -> None:
    import osler

    for name in osler.__all__:
        assert getattr(osler, name).__doc__, name


def test_files_stay_short() -> None:
    lengths = {path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in files()}
    assert not {name: n for name, n in lengths.items() if n > LONG.get(name, 450)}
    assert not {name for name in LONG if lengths[name] <= 450}, "no longer an exception"


def test_nothing_is_unpickled_or_run() -> None:
    """No pickle, no torch.load without weights_only, no eval; also in the program that a child process runs."""
    wrong = []
    for path in files():
        child = [ast.parse(text) for text in _programs(tree(path))]
        for package, _ in imports(path):
            if package in ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
                wrong.append(f"{path.name} imports {package}")
        for node in (node for one in [tree(path), *child] for node in ast.walk(one)):
            if not isinstance(node, ast.Call):
                continue
            called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                wrong.append(f"{path.name}:{node.lineno} torch.load without weights_only=True")
            if given.get("allow_pickle") == "True" or (called == "np.load" and "allow_pickle" not in given):
                wrong.append(f"{path.name}:{node.lineno} np.load without allow_pickle=False")
            if called in ("eval", "exec", "compile", "os.system") or given.get("shell") == "True":
                wrong.append(f"{path.name}:{node.lineno} {called}")
    assert not wrong, "; ".join(wrong)


def _programs(module: ast.Module) -> Iterator[str]:
    texts = (
        node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return (text for text in texts if text.lstrip().startswith("import ") and "torch.load" in text)


def test_the_child_process_is_looked_at() -> None:
    assert any(list(_programs(tree(path))) for path in files())


def test_torchvision_stays_out() -> None:
    """It ties an installation to one build of torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for names in project["optional-dependencies"].values() for name in names),
    ]
    unwanted = ("torchvision", "timm", "lightning", "segmentation-models-pytorch", "ultralytics")
    assert not [name for name in wanted if name.startswith(unwanted)]
    assert not [path for path in files() for package, _ in imports(path) if package in unwanted]
    assert "torchvision" not in (ROOT / "constraints.txt").read_text()


def test_public_functions_and_classes_say_what_they_do() -> None:
    silent = [
        f"{module_of(path)}.{node.name}"
        for path in files()
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent
