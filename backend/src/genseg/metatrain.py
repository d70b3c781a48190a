"""Learn a starting model from several studies: prepare, meta-steps, a model with its card."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from genseg import __version__
from genseg.device import is_out_of_memory
from genseg.errors import EXIT_OK, EXIT_STOPPED, Fault, InputFaults, RunFailed
from genseg.events import EventLog, Finished, Metric, Planned, Progress, Started
from genseg.methods.episodes import SHOTS, Tasks, with_channels
from genseg.methods.metalearn import INNER_STEPS, OUTPUT, MetaLearner
from genseg.networks import build_segmenter
from genseg.plan import Plan
from genseg.prepare import Prepared, prepare, versions
from genseg.runfolder import RunFolder, building, read_model, replacing, write_json
from genseg.settings import MetaSettings
from genseg.startingmodel import Card, Start, StartingModel, described, with_studies
from genseg.state import save_tensors, seeded

RATE = 1e-3
SAVE_SECONDS = 20.0
METRIC_SECONDS = 2.0
SCORE_SECONDS, SCORE_SHARE = 30.0, 0.1  # for judging the finished start: so long, or that share of the learning
ATTEMPTS = 10  # steps that are not finite, one after another


@dataclass
class MetaRun:
    """What a meta-training is made of while it runs."""

    folder: RunFolder
    settings: MetaSettings
    learner: MetaLearner
    plan: Plan  # of the network
    log: EventLog
    now: Callable[[], float] = time.monotonic  # seconds; a budget is of this clock
    before: int = 0  # meta-steps of the starting models that this one goes on from
    step: int = 0  # that have been tried
    taken: int = 0
    begin: float = field(init=False)
    told: float = 0.0  # when the curves last got a point

    def __post_init__(self) -> None:
        self.begin = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self.begin

    @property
    def progress(self) -> float:
        """0..1 by steps or by time."""
        if self.settings.iterations is not None:
            return self.step / self.settings.iterations
        assert self.settings.budget is not None
        return min(1.0, self.spent / self.settings.budget)


def meta_train(settings: MetaSettings, log: EventLog) -> int:
    """→ exit status. Raises InputFaults with the faults of all studies, or RunFailed."""
    settings.versions = versions()
    start = Start(settings.init)
    return learn_from(prepare_studies(settings, log, start), settings, log, start.model)


def learn_from(
    studies: list[Prepared],
    settings: MetaSettings,
    log: EventLog,
    start: StartingModel | None = None,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """The same with the studies at hand, of one number of channels and one network."""
    plan = plan_of(studies, smooth=start is None and settings.method == "imaml")
    before = 0 if start is None else start.meta_steps
    run = MetaRun(RunFolder(settings.out), settings, learner_of(studies, plan, settings), plan, log, now, before)
    anew = [] if start is None else start.copy_to(run.learner.network, plan)
    _create(run, studies, start)
    log.open(run.folder.events)
    if start is not None:
        start.tell(run.learner.network, [name for name in anew if not name.startswith(OUTPUT)], [], log)
    log.emit(
        Started(version=__version__, run=str(run.folder.path), method=settings.method, device=studies[0].device.name)
    )
    log.emit(Planned(plan=plan.model_dump(mode="json")))
    status = _fit(run)
    if run.step and not run.taken:
        raise _diverged(run.step, run.step)
    if not run.taken:
        remedy = "Give a longer --budget and another --out."
        raise RunFailed("too_short", "The budget ended before the first meta-step; nothing was learned.", remedy)
    _save(run)
    if status == EXIT_OK:
        _tell_card(run, query_dice=_scores(run))
        run.folder.mark_done(run.step)
        run.folder.stop.unlink(missing_ok=True)
    log.emit(Finished(status=status, seconds=run.spent, model=str(run.folder.best)))
    return status


def prepare_studies(settings: MetaSettings, log: EventLog, start: Start | None = None) -> list[Prepared]:
    """The studies with one network for all: grey scans get as many channels as coloured ones have."""
    studies = prepare(settings.as_training(), log, False, start)
    channels = max(one.plan.channels for one in studies)
    odd = [one.study.name for one in studies if one.plan.channels not in (1, channels)]
    if odd:
        rule = f"Scans must have one channel or as many as those of the other studies ({channels})."
        raise InputFaults([Fault("studies_differ", name, rule, "Leave the study out.") for name in odd])
    return [with_channels(one, channels) for one in studies]


def plan_of(studies: list[Prepared], smooth: bool = False) -> Plan:
    """The network that all share, for one structure at a time; the rest is that of the first study.

    `smooth`: as iMAML needs it, since where units have kinks H says nothing of a step of any length.
    """
    changes = {"classes": 2, "prompts": None} | ({"activation": "swish"} if smooth else {})
    return studies[0].plan.model_copy(update=changes)


def learner_of(studies: list[Prepared], plan: Plan, settings: MetaSettings) -> MetaLearner:
    """With weights drawn from the seed."""
    device = studies[0].device
    network = device.place(seeded(settings.seed, "segmenter", lambda: build_segmenter(plan)))
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    return MetaLearner(network, optimiser, Tasks(studies), device, settings.method, settings.seed)


def _create(run: MetaRun, studies: list[Prepared], start: StartingModel | None) -> None:
    """The folder with everything that does not change, under a temporary name and then renamed."""
    with building(run.folder.path) as made:
        run.settings.save(made.settings)
        run.plan.save(made.plan)
        earlier = [] if start is None else start.trained_on
        card = Card(
            method=run.settings.method,
            genseg=__version__,
            trained_on=with_studies(earlier, [described(one.study) for one in studies]),
            began_from=None if start is None else start.card,
        )
        write_json(made.card, card.model_dump())


def _fit(run: MetaRun) -> int:
    """Meta-steps until the budget is used up or a stop is asked for."""
    saved, left_out = run.now(), 0
    while run.progress < 1:
        for group in run.learner.optimiser.param_groups:
            group["lr"] = RATE * (1 - run.progress) ** 0.9
        seen = _step(run)
        run.step += 1
        run.taken += seen is not None
        left_out = 0 if seen is not None else left_out + 1
        if seen is not None:
            _tell(run, seen)
        elif left_out == 1:
            run.log.warn("not_finite", f"A loss or a gradient was not finite at step {run.step}; it was left out.")
        elif left_out > ATTEMPTS:
            raise _diverged(left_out, run.step)
        if run.taken and run.now() - saved > SAVE_SECONDS:
            _save(run)
            saved = run.now()
        if run.folder.stop.exists():
            return EXIT_STOPPED
    return EXIT_OK


def _diverged(left_out: int, step: int) -> RunFailed:
    remedy = "Look for scans with extreme intensities; then train again, perhaps with another --seed."
    return RunFailed("diverged", f"The last {left_out} steps were not finite; step {step}.", remedy)


def _step(run: MetaRun) -> dict[str, float] | None:
    try:
        return run.learner.step(run.before + run.step)  # going on is given other tasks than the beginning was
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        less = "; --method first-order needs a third of the memory" if run.settings.method == "imaml" else ""
        remedy = f"Close other programs, or choose another --device{less}."
        raise RunFailed("out_of_memory", "The memory does not suffice for a meta-step.", remedy) from error


def _tell(run: MetaRun, seen: dict[str, float]) -> None:
    """Events of a step: not more than the curves need."""
    now, total = run.now(), run.settings.iterations
    if now - run.told < METRIC_SECONDS and run.step != total:
        return
    run.told = now
    for name, value in seen.items():
        run.log.emit(Metric(name=name, value=value, step=run.step))
    total = total or max(run.step, round(run.step / max(run.progress, 1e-3)))
    left = run.spent / run.progress * (1 - run.progress) if run.progress > 0.02 else None
    run.log.emit(Progress(phase="train", step=run.step, total=total, seconds_left=left))


def _scores(run: MetaRun) -> dict[str, float | None]:
    """What the finished starting point is good for, by structure; None where nobody else's scan can tell.

    As many structures of every study as there is time for: a tenth of what the learning took, or half a minute.
    """
    scores: dict[str, float | None] = {}
    tasks, end = run.learner.tasks.single(), run.spent + max(SCORE_SECONDS, SCORE_SHARE * run.spent)
    for number, task in enumerate(tasks):
        if scores and (run.spent > end or run.folder.stop.exists()):
            break
        run.log.emit(Progress(phase="predict", step=number, total=len(tasks)))
        dice = run.learner.score(task)
        scores[run.learner.tasks.name(task)] = None if dice is None else round(dice, 4)
    return scores


def _save(run: MetaRun) -> None:
    """The starting point as it is, with its card."""
    save_tensors(run.folder.best, _weights(run), {"step": str(run.step)})
    _tell_card(run, meta_steps=run.taken, seconds=round(run.spent))


def _tell_card(run: MetaRun, **told: object) -> None:
    """Change what the card says, for programs and for people."""
    card = read_model(Card, run.folder.card).model_copy(update=told)
    write_json(run.folder.card, card.model_dump())
    _write_readme(run, card)


def _weights(run: MetaRun) -> dict[str, torch.Tensor]:
    """All but those of the last layer, which every task has of its own."""
    return {name: p.detach() for name, p in run.learner.start().items()}


def _write_readme(run: MetaRun, card: Card) -> None:
    """The card for people."""
    plan = run.plan
    rows = [
        f"| {one.name} | {', '.join(one.structures)} | {one.labelled_scans} | {one.licence} "
        f"| {one.reference or 'not given'} |"
        for one in card.trained_on
    ]
    scores = [
        f"| {name} | {'not measured: no patch of another patient showed it' if dice is None else f'{dice:.2f}'} |"
        for name, dice in card.query_dice.items()
    ]
    steps = (
        f"Mean Dice of patches, half of them about the structure, in other patients' scans of the same studies after "
        f"{INNER_STEPS} steps on 1 to {SHOTS}"
    )
    before = card.began_from
    began = "" if run.settings.init is None else ", going on from a trained model of the studies named first"
    if before is not None:
        began = f", going on from {before.meta_steps} steps of {before.method}"
    other = " or one" if plan.channels > 1 else " or several"
    lines = [
        "# A starting model of GenSeg",
        "",
        f"For {plan.dims}D networks and scans of {plan.channels} channel(s){other}. It segments nothing by itself: "
        "give it to `genseg train --init`, or as *Starting model* in 3D Slicer, together with 1 to 5 labelled scans.",
        "",
        f"Learned by {card.method} in {card.meta_steps} meta-steps, seed {run.settings.seed}, with GenSeg "
        f"{card.genseg}{began}. To pass it on, `README.md`, `card.json`, `plan.json` and "
        "`checkpoints/best.safetensors` suffice: weights and numbers, no scan. The other files name folders of the "
        "computer it was made on.",
        "",
        "| study | structures | labelled scans | licence | reference |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Whoever passes the model on must keep to the licences of these scans.",
        "",
    ]
    if scores:
        some = "" if len(scores) == len(run.learner.tasks.single()) else " (there was no time for the other structures)"
        lines += [f"{steps} scans. All were trained on in other tasks, so this is no test{some}:", ""]
        lines += ["| study: structure | Dice |", "|---|---|", *scores, ""]
    with replacing(run.folder.path / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
