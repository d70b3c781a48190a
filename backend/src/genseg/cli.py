"""The command line. Each command checks its arguments, hands them to one function, and reports.

Everything heavy is imported inside the commands: `genseg --help` must not wait for torch.
"""

import json
import re
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer
from rich.console import Console

from genseg import __version__
from genseg.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, Fault, InputFaults
from genseg.runfolder import RunFolder, need_free
from genseg.session import Session, serve, use_utf8
from genseg.settings import PARTS, SEGMENTERS, GeneratorName, MetaMethod, MetaSettings, Method, Settings, parse_budget

SEGMENTER_HELP = f"auto, {', '.join(SEGMENTERS)}, or your own as package.module:factory"
app = typer.Typer(
    help="Train a generator and a segmenter jointly from a handful of labelled scans.",
    epilog="Exit status: 0 done, 2 bad input, 3 stopped on request with a usable model, 1 anything else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="New or empty folder for the results.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Events = Annotated[bool, typer.Option("--events", help="Print events as JSON lines, and nothing else, on stdout.")]
Watch = Annotated[
    bool, typer.Option("--watch-stdin", help="End as on Ctrl-C when standard input closes: for programs that start it.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


class Format(StrEnum):
    """File formats of a label map, by suffix."""

    SEGMENTATION = "seg.nrrd"
    NIFTI = "nii.gz"
    NIFTI_PLAIN = "nii"
    NRRD = "nrrd"
    META = "mha"
    PNG = "png"


def main() -> None:
    """Entry point of the `genseg` program."""
    use_utf8()
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"genseg {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _budget(text: str) -> float:
    try:
        return parse_budget(text)
    except ValueError as refused:
        raise typer.BadParameter(str(refused)) from refused


def _limits(budget: str | None, iterations: int | None, default: str) -> dict[str, Any]:
    """What ends a training, as settings take it."""
    if budget is not None and iterations is not None:
        raise typer.BadParameter("give either --budget or --iterations, not both")
    return {"budget": None, "iterations": iterations} if iterations else {"budget": _budget(budget or default)}


def _need_run(run: Path) -> None:
    remedy = "Give the folder that was named with --out when training."
    if not run.is_dir():
        raise InputFaults([Fault("not_a_run", str(run), "There is no such run folder.", remedy)])
    if not (run / "settings.json").is_file():
        raise InputFaults([Fault("not_a_run", str(run), "The folder holds no settings.json, so it is no run.", remedy)])
    if RunFolder(run).card.exists():
        remedy = f'Its README.md says what it is. Use it with: genseg train STUDY --init "{run}" --out RUN'
        raise InputFaults([Fault("starting_model", str(run), "This is a starting model and no run.", remedy)])


def _need_model_folder(folder: Path) -> None:
    """A run folder or an exported bundle will do; what it lacks inside the reader of the model says."""
    if not folder.is_dir():
        remedy = "Give the folder that was named with --out when training, or an exported bundle."
        raise InputFaults([Fault("not_a_run", str(folder), "There is no such run folder.", remedy)])


def _resume(context: typer.Context, run: Path, events: bool, watch: bool) -> None:
    given = [
        name
        for name in context.params
        if name not in ("resume", "events", "watch_stdin")
        and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        raise typer.BadParameter(f"a resumed run keeps its settings, so leave out: {', '.join(given)}")

    def body(session: Session) -> int:
        _need_run(run)
        from genseg.train import resume

        return resume(run, session.log)

    serve(body, programs=events, run=run, watch=watch)


def _train(settings: Settings, events: bool, watch: bool) -> None:
    def body(session: Session) -> int:
        need_free(settings.out)
        from genseg.train import train

        return train(settings, session.log)

    serve(body, programs=events, run=settings.out, watch=watch)


def _profile(settings: Settings, events: bool, watch: bool) -> None:
    def body(session: Session) -> None:
        from genseg.train import profile

        profile(settings, session.log)

    serve(body, programs=events, watch=watch)


@app.command()
def train(
    context: typer.Context,
    datasets: Annotated[
        Optional[list[Path]],
        typer.Argument(
            metavar="DATASET...",
            help="dataset.json, its folder, an nnU-Net raw folder, or a pair of folders. Several studies are trained "
            "together.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Run folder; new or empty.", show_default=False)] = None,
    labelled: Annotated[Optional[int], typer.Option(min=1, help="Draw so many labelled scans.")] = None,
    unlabelled: Annotated[Optional[int], typer.Option(min=0, help="Take so many of the others, unlabelled.")] = None,
    seed: Seed = 0,
    method: Annotated[Literal[Method, "auto"], typer.Option(help="How to train.")] = "auto",
    learn_unlabelled: Annotated[
        bool,
        typer.Option("--learn-unlabelled/--no-learn-unlabelled", help="Learn from the scans without labels, too."),
    ] = True,
    without: Annotated[
        Optional[list[str]],
        typer.Option(metavar="PART", help=f"Leave out a part of versemi: {', '.join(PARTS)}.", hidden=True),
    ] = None,
    generator: Annotated[GeneratorName, typer.Option(help="Generator network.")] = "spade",
    segmenter: Annotated[str, typer.Option(help=f"Segmenter network: {SEGMENTER_HELP}.")] = "auto",
    budget: Annotated[
        Optional[str], typer.Option(help="quick (5 min, the default), standard, thorough, or a time: 90s, 5m, 2h.")
    ] = None,
    iterations: Annotated[Optional[int], typer.Option(min=1, help="Segmenter steps, instead of a budget.")] = None,
    device: Device = "auto",
    init: Annotated[Optional[Path], typer.Option(help="Run folder, bundle or starting model to start from.")] = None,
    synthetic_weight: Annotated[
        Optional[float], typer.Option(min=0, help="Fix the weight of the synthetic loss instead of learning it.")
    ] = None,
    resume: Annotated[Optional[Path], typer.Option(help="Go on with this run from its last checkpoint.")] = None,
    events: Events = False,
    watch_stdin: Watch = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print what a joint step costs, and train nothing.")
    ] = False,
) -> None:
    """Train on a study, or go on with a run."""
    if resume is not None:
        _resume(context, resume, events, watch_stdin)
    if not datasets:
        raise typer.BadParameter("give a DATASET to train on, or --resume RUN to go on with a run")
    if out is None and not profile:
        raise typer.BadParameter("give --out RUN, the folder for the results")
    if unknown := set(without or []) - set(PARTS):
        raise typer.BadParameter(f"versemi has no part {', '.join(sorted(unknown))}; it has {', '.join(PARTS)}")
    if segmenter not in ("auto", *SEGMENTERS) and not re.fullmatch(r"[\w.]+:\w+", segmenter):
        raise typer.BadParameter(f"there is no segmenter '{segmenter}'; choose {SEGMENTER_HELP}")
    limits = _limits(budget, iterations, "quick")
    settings = Settings(
        dataset=datasets[0].absolute(),
        more=[more.absolute() for more in datasets[1:]],
        out=(out or Path(tempfile.gettempdir()) / "genseg-profile").absolute(),
        method=method,
        learn_unlabelled=learn_unlabelled,
        without=[part for part in PARTS if part in (without or [])],
        labelled=labelled,
        unlabelled=unlabelled,
        seed=seed,
        device=device,
        init=init.absolute() if init else None,
        synthetic_weight=synthetic_weight,
        generator=generator,
        segmenter=segmenter,
        **limits,
    )
    (_profile if profile else _train)(settings, events, watch_stdin)


@app.command("meta-train")
def meta_train(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET...", help="Studies with labelled scans.")],
    out: Out,
    method: Annotated[MetaMethod, typer.Option(help="What learns the starting model.")] = "pretrain",
    budget: Annotated[
        Optional[str],
        typer.Option(help="Time of training: quick, standard, thorough, or like 5m.", show_default="standard"),
    ] = None,
    iterations: Annotated[Optional[int], typer.Option(min=1, help="Meta-steps, instead of a budget.")] = None,
    init: Annotated[Optional[Path], typer.Option(help="Go on from this starting model, run or bundle.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    events: Events = False,
    watch_stdin: Watch = False,
) -> None:
    """Learn a starting model from several studies, for `genseg train --init`."""
    limits = _limits(budget, iterations, "standard")
    first, *more = (path.absolute() for path in datasets)
    settings = MetaSettings(
        dataset=first,
        more=more,
        out=out.absolute(),
        method=method,
        seed=seed,
        device=device,
        init=init.absolute() if init else None,
        **limits,
    )

    def body(session: Session) -> int:
        need_free(settings.out)
        from genseg.metatrain import meta_train as learn

        return learn(settings, session.log)

    serve(
        body,
        programs=events,
        run=settings.out,
        watch=watch_stdin,
        again=f'genseg meta-train STUDY... --init "{settings.out}" --out NEW',
    )


@app.command()
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of them.")],
    out: Out,
    format: Annotated[Optional[list[Format]], typer.Option(help="File format; may be given more than once.")] = None,
    tta: Annotated[bool, typer.Option("--tta/--no-tta", help="Average over mirrored copies.")] = True,
    device: Device = "auto",
    events: Events = False,
    watch_stdin: Watch = False,
) -> None:
    """Segment images with a trained model."""

    def body(session: Session) -> int:
        _need_model_folder(run)
        need_free(out)
        from genseg.inference import Predictor
        from genseg.predict import collect_images, predict_cases

        predictor = Predictor.load(run, device)
        cases = collect_images(images, predictor.plan.channels)
        formats = tuple(f".{one.value}" for one in format) if format else None
        failed = predict_cases(predictor, cases, out, session.log, formats=formats, tta=tta)
        session.people.close()
        if not events:
            session.print(f"{len(cases) - len(failed)} of {len(cases)} images segmented, in {out}")
        return EXIT_BAD_INPUT if failed else EXIT_OK

    serve(body, programs=events, watch=watch_stdin)


@app.command()
def evaluate(
    run: Run,
    dataset: Annotated[Path, typer.Argument(help="The study with the reference labels.", show_default=False)],
    split: Annotated[Literal["test", "training"], typer.Option(help="Which of its scans.")] = "test",
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: Device = "auto",
) -> None:
    """Compare a run's predictions with reference labels: Dice, IoU, HD95 and surface Dice."""

    def body(session: Session) -> int:
        _need_model_folder(run)
        from genseg.evaluate import evaluate_run, print_table

        result = evaluate_run(run, dataset, split, device, session.log)
        session.people.close()
        if json_:
            session.print(json.dumps(result, indent=2, ensure_ascii=False))
        else:
            print_table(result, Console(highlight=False))
        return EXIT_BAD_INPUT if result["failed"] else EXIT_OK

    serve(body, machine=json_)


@app.command()
def synthesize(
    run: Run,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="Number of pairs.")] = 16,
    seed: Seed = 0,
    device: Device = "auto",
    events: Events = False,
) -> None:
    """Make synthetic image and mask pairs with a run's generator."""

    def body(session: Session) -> int:
        _need_run(run)
        need_free(out)
        from genseg.synthesize import architecture
        from genseg.synthesize import synthesize as make

        written = make(run, count, out, device, seed, session.log)
        if not events:
            session.print(f"{written} pairs written to {out}")
            if kernels := architecture(out):
                session.print(kernels)
        return EXIT_OK if written else EXIT_FAILED

    serve(body, programs=events)


@app.command()
def report(run: Run) -> None:
    """Write report.html anew from what the run folder holds."""

    def body(session: Session) -> None:
        _need_run(run)
        from genseg.report import build_reports

        session.print(str(build_reports(RunFolder(run))))

    serve(body)


@app.command()
def export(run: Run, out: Out) -> None:
    """Export a run's model as a MONAI bundle."""

    def body(session: Session) -> None:
        _need_run(run)
        need_free(out)
        from genseg.export import export_bundle

        export_bundle(RunFolder(run), out)
        session.print(str(out))

    serve(body)


@app.command()
def sample(
    name: Annotated[Literal["hippocampus", "phantom"], typer.Argument(help="Which sample.", show_default=False)],
    out: Out,
) -> None:
    """Get sample data: hippocampus (MSD Task04, downloaded) or phantom (made on the spot, offline)."""

    def body(session: Session) -> None:
        from genseg.sample import sample as get

        session.print(str(get(name, out, session.log)))

    serve(body)


@app.command()
def doctor(json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of sentences.")] = False) -> None:
    """Say whether this machine can train, on what, and what is missing."""

    def body(session: Session) -> int:
        from genseg.doctor import diagnose, print_diagnosis

        diagnosis = diagnose()
        if json_:
            session.print(diagnosis.model_dump_json(indent=2))
        else:
            print_diagnosis(diagnosis, Console(highlight=False))
        return EXIT_OK if diagnosis.usable else EXIT_FAILED

    serve(body, machine=json_)


if __name__ == "__main__":
    main()
