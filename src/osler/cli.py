"""The command line: parses, calls the public function of the same name, prints. Nothing is computed here."""

import sys
import traceback
from pathlib import Path
from typing import Literal

from cyclopts import App
from cyclopts.exceptions import CycloptsError, MissingArgumentError, UnusedCliTokensError

from osler.allocator import keep_memory
from osler.problem import Problem, shown_path

# Commands that go on where they were.
_GO_ON = ("demo", "train", "pretrain", "ablate", "download")

app = App(
    name="osler",
    help="Medical image diagnosis with neural networks: trained, calibrated, explained, honestly evaluated, served. "
    "For research; not a medical device. Add --debug to any command for a traceback.",
    version_flags=["--version"],
)


@app.command
def demo(out: Path = Path("demo"), *, open_page: bool = False) -> None:
    """Makes a phantom cohort on the spot and takes it through every verb, in under three minutes.

    Parameters
    ----------
    out
        Folder for the cohort, the run and the pages; begin with index.html in it.
    open_page
        Open the page in the browser at the end.
    """
    from osler import demonstration

    page = demonstration.demo(out, say=_say)
    print(f"open {shown_path(page)}")
    if open_page:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command
def inspect(cohort: Path, *, out: Path, cohort_file: Path | None = None, masked: bool = False) -> None:
    """Looks at every case of a cohort: what is there, what is wrong with it, and what to do about each.

    Parameters
    ----------
    cohort
        Any cohort; see train.
    out
        Folder for inspection.json, inspection.html and the private names.csv.
    cohort_file
        A cohort.toml outside the cohort's folder.
    masked
        Blank in the thumbnails what looks like burned-in text.
    """
    from osler import inspection

    found = inspection.inspect(cohort, out, cohort_file=cohort_file, masked=masked, say=_say)
    for line in inspection.in_lines(found):
        print(line)
    print(f"page {shown_path(out / 'inspection.html')}")


@app.command
def train(
    cohort: Path,
    *settings: str,
    out: Path,
    recipe: Path | None = None,
    cohort_file: Path | None = None,
    minutes: float = 12.0,
) -> None:
    """Trains, calibrates and stores a model of a cohort; run it again to go on after an interruption.

    Parameters
    ----------
    cohort
        Class folders, a table (manifest.csv) or a cohort.toml, a MedMNIST .npz, nnU-Net raw, Pascal VOC, COCO, YOLO,
        or a DICOM tree.
    settings
        key=value for anything in the recipe, e.g. epochs=20 folds=5 backbone=vgg network.options.depth=11.
    out
        Run folder.
    recipe
        A recipe file to start from; what it leaves out is planned.
    cohort_file
        A cohort.toml outside the cohort's folder.
    minutes
        Time for training, turned into a number of epochs when the plan is made.
    """
    from osler import recipe as recipes
    from osler import training

    given = recipes.settings(settings)
    if recipe is not None:
        given = recipes.merge(recipes.read(recipe), given)
    training.train(cohort, out, given, cohort_file=cohort_file, minutes=minutes, say=_say)
    print(f"model {shown_path(out / 'model.safetensors')}")
    print(f"page  {shown_path(out / 'training.html')}")


@app.command
def pretrain(cohort: Path, *settings: str, out: Path, cohort_file: Path | None = None, minutes: float = 12.0) -> None:
    """Learns from images without their labels; a training starts from the weights: osler train ... weights=OUT.

    Parameters
    ----------
    cohort
        Any cohort; labels are not needed. Its test part is left out.
    settings
        key=value for anything in the recipe, e.g. epochs=100 backbone=convnext; weights=FILE begins with those.
    out
        The .safetensors file to write; the run is kept in a folder of the same name that ends in .run.
    cohort_file
        A cohort.toml outside the cohort's folder.
    minutes
        Time for training, turned into a number of epochs when the plan is made.
    """
    from osler import pretraining
    from osler import recipe as recipes

    given = recipes.settings(settings)
    path = pretraining.pretrain(cohort, out, given, cohort_file=cohort_file, minutes=minutes, say=_say)
    print(f"weights {shown_path(path)}")
    print(f"page    {shown_path(out.with_suffix('.run') / 'training.html')}")


@app.command
def evaluate(
    run: Path,
    cohort: Path,
    *,
    out: Path,
    cohort_file: Path | None = None,
    against: Path | None = None,
    out_of_fold: bool = False,
) -> None:
    """Measures a model on cases that it has not seen, with intervals, and writes a page.

    Parameters
    ----------
    run
        Run folder or model file.
    cohort
        Any cohort; its test part if it names one, else all of it.
    out
        Folder for evaluation.json, predictions.csv and evaluation.html.
    cohort_file
        A cohort.toml outside the cohort's folder.
    against
        Another run, compared on the same cases.
    out_of_fold
        For a run with folds on its own cohort: each case by the network that was trained without it.
    """
    from osler import evaluation

    evaluation.evaluate(run, cohort, out, cohort_file=cohort_file, against=against, out_of_fold=out_of_fold, say=_say)
    print(f"page {shown_path(out / 'evaluation.html')}")


@app.command
def ablate(
    cohort: Path,
    *settings: str,
    out: Path,
    recipe: Path | None = None,
    cohort_file: Path | None = None,
    minutes: float = 12.0,
) -> None:
    """Prints what each augmentation of the plan is worth: trained without and with it, compared on held-out cases.

    Parameters
    ----------
    cohort
        Any cohort with labels; its test part is not looked at.
    settings
        key=value as for train; augmentation.NAME.probability=0.2 tries one more, =0 one less.
    out
        Folder for the runs, ablation.json and ablation.html; run it again to go on after an interruption.
    recipe
        A recipe file to start from; what it leaves out is planned.
    cohort_file
        A cohort.toml outside the cohort's folder.
    minutes
        Time for each training, turned into a number of epochs once for all of them.
    """
    from osler import ablation
    from osler import recipe as recipes

    given = recipes.settings(settings)
    if recipe is not None:
        given = recipes.merge(recipes.read(recipe), given)
    result = ablation.ablate(cohort, out, given, cohort_file=cohort_file, minutes=minutes, say=_say)
    print("\n".join(ablation.table(result)))
    print(f"page {shown_path(out / 'ablation.html')}")


@app.command
def diagnose(
    run: Path,
    *inputs: Path,
    out: Path,
    image: tuple[str, ...] = (),
    covariate: tuple[str, ...] = (),
    method: Literal["auto", "gradcam", "occlusion", "integrated_gradients", "attention", "none"] = "auto",
) -> None:
    """Answers for images, folders of images, or DICOM series: a page, an overlay and JSON for each.

    Parameters
    ----------
    run
        Run folder or model file.
    inputs
        Files, series folders, or folders of files.
    out
        A folder for each case, under a pseudonym; names.csv in it leads back and is private.
    image
        An image of the one case of several modalities, as MODALITY=PATH, once for each: --image flair=a.nii.gz
        --image t1=b.nii.gz. What is missing is left out. Many cases stand in a table: give the cohort.
    covariate
        What is known of the person, as NAME=VALUE, once for each: --covariate age=71 --covariate sex=F. Those of
        many cases stand in a table: give the cohort.
    method
        How the overlay is made; none makes no overlay.
    """
    from osler import diagnoses

    if not inputs and not image:
        raise Problem("no input was given", fix="name at least one file or folder")
    done, failed = diagnoses.diagnose_paths(run, inputs, out, method=method, known=covariate, images=image, say=_say)
    if not done:
        raise Problem(f"none of the {failed} inputs could be diagnosed", fix="see the lines above")
    print(f"page {shown_path(out / 'index.html')}")
    if failed:
        sys.exit(2)


@app.command
def explain(
    run: Path,
    source: Path | None = None,
    *,
    out: Path,
    image: tuple[str, ...] = (),
    method: Literal["gradcam", "occlusion", "integrated_gradients", "attention", "all"] = "gradcam",
    finding: str = "",
    covariate: tuple[str, ...] = (),
) -> None:
    """Shows where an answer comes from, with the map's own test beside it.

    Parameters
    ----------
    run
        Run folder or model file.
    source
        One image, or a folder with one series.
    out
        Folder for the pictures and explanation.json.
    image
        An image of a case of several modalities, as MODALITY=PATH, once for each, as for diagnose.
    method
        One method, or all of them.
    finding
        The class to explain; the one that is decided if left out.
    covariate
        What is known of the person, as for diagnose; then each covariate's share is said, too, but by models of
        several modalities.
    """
    from osler import explanation

    lines = explanation.explain_path(
        run, source, out, method=method, finding=finding or None, known=covariate, images=image
    )
    for line in lines:
        print(line)


@app.command
def serve(run: Path, *, port: int = 8765, host: str = "127.0.0.1") -> None:
    """A page on this machine onto which an image is dropped and the diagnosis comes back; also as JSON.

    Parameters
    ----------
    run
        Run folder or model file.
    port
        To listen on.
    host
        Loopback only.
    """
    from osler.server import serve as start

    start(run, port=port, host=host)


@app.command
def import_weights(
    file: Path, *options: str, backbone: str, out: Path, licence: str, source: str, channels: int = 3
) -> None:
    """Takes foreign weights (.pth) in, once: read in a child process, checked, stored as safetensors.

    Parameters
    ----------
    file
        The foreign file.
    options
        NAME=VALUE for options of the backbone that differ from the defaults, e.g. depth=34.
    backbone
        Whose weights they are, e.g. efficientnet_lite.
    out
        The .safetensors file to write; give it to training with weights=FILE.
    licence
        Of the weights, e.g. Apache-2.0; kept in the file.
    source
        Where they come from; kept in the file.
    channels
        Of the images they were trained on.
    """
    from osler import recipe, weights

    chosen = recipe.named_values(options)
    path = weights.import_weights(
        file, backbone, out, licence=licence, source=source, options=chosen, channels=channels
    )
    print(f"weights {shown_path(path)}")


@app.command
def download(name: str = "", *, out: Path | None = None) -> None:
    """Fetches a public data set by name, with licence and checksum shown; without a name, lists what there is.

    Run it again after an interruption: it goes on where it was.

    Parameters
    ----------
    name
        Of the set, e.g. pneumoniamnist or pneumoniamnist_64.
    out
        Folder for the set, one for each; give it to osler train. If left out, a folder of the set's name.
    """
    from osler import public_sets

    if not name:
        for each in public_sets.catalogue():
            print(
                f"{each.name:20s} {each.images:7,} of {each.size:10s} {each.task:10s} {each.licence:12s} {each.what}"
            )
        print(f"from {public_sets.catalogue()[0].source}")
        return
    print(f"set {shown_path(public_sets.download(name, out or Path(name), say=_say))}")


@app.command
def cache(*, purge: bool = False) -> None:
    """What was decoded once and is kept to be read faster; OSLER_CACHE sets its size in GiB, 0 switches it off.

    Parameters
    ----------
    purge
        Take everything away.
    """
    from osler import cache as copies

    if purge:
        print(f"{copies.purge() / copies.GIB:.1f} GiB taken away")
    print(copies.describe())


@app.command
def doctor() -> None:
    """What this machine has, and what is missing for what."""
    from osler import cache as copies
    from osler import machine

    for line in (*machine.describe(), copies.describe()):
        print(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> None:
    """Entry point: bad input gives one sentence and exit code 2, never a traceback without --debug."""
    given = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in given
    given = [word for word in given if word != "--debug"]
    keep_memory()
    try:
        app(given, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        on = given[:1] and given[0] in _GO_ON
        _say(f"stopped; osler {given[0]} goes on where it was if you give the same command" if on else "stopped")
        sys.exit(130)
    except (Problem, CycloptsError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        _say(f"osler: {_sentence(error)}")
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        _say(f"osler: unexpected: {type(error).__name__}: {error}; please report it, with the output of --debug")
        sys.exit(1)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, Problem):
        where = f"{shown_path(Path(error.filename))}: " if isinstance(error.filename, str) else ""
        return f"{where}{(error.strerror or str(error)).lower()}."
    if isinstance(error, MemoryError):
        return "there is not enough memory; lower batch or image.size."
    if isinstance(error, UnusedCliTokensError):
        command = " ".join(error.command_chain or ())
        takes = {"explain": "takes one image"}.get(command, "takes no more words than its own")
        return f"{command} {takes}; leave out {', '.join(error.unused_tokens or ())}."
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        command, name = " ".join(error.command_chain or ()), error.argument.name
        # What is given by its place is known by its name in the help.
        what = name if error.argument.index is None else name.removeprefix("--").upper()
        return f"osler {command} needs {what}; osler {command} --help says what that is."
    return str(error)
