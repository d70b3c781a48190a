"""What starting models are worth in the way they were learned: ten inner steps, in a study they have not seen.

    python Testing/benchmarks/fewshot.py kvasir MODELS/photographs-imaml-0 MODELS/photographs-first-order-0 --grid light

An episode draws 1 to 5 patients of the study's labelled training scans, adapts to them with a last layer drawn anew,
and is judged on patches of the others; no test scan is read. All models are given the same episodes, and so is a
network that has learned nothing. Errors are standard errors over threes of episodes.
"""

import argparse
import statistics
from pathlib import Path

import torch
from figures import mean_and_error
from runs import DATA, GRIDS
from training import OnGrid, need_unseen

from genseg.device import find_device
from genseg.events import EventLog
from genseg.metatrain import learner_of, plan_of
from genseg.methods.episodes import with_channels
from genseg.methods.metalearn import SCORED
from genseg.prepare import Prepared, load
from genseg.settings import MetaSettings
from genseg.startingmodel import StartingModel
from genseg.study import read_study


def ready_for(name: str, start: StartingModel, grid: str) -> Prepared:
    """The labelled scans of the study's `training` on the start's plan."""
    study = read_study(DATA / name).model_copy(update={"unlabeled": [], "test": []})
    need_unseen(start, [study])
    settings, log = MetaSettings(dataset=DATA / name, out=Path("unwritten")), EventLog()
    (ready,) = load([study], None, settings.as_training(), find_device("cpu"), [log], OnGrid(grid, start))
    return with_channels(ready, start.plan.channels)


def episodes(ready: Prepared, start: StartingModel | None, count: int) -> list[float]:
    """Query Dice, the mean of SCORED episodes of a structure each, of a start or of weights as they are drawn."""
    found: list[float] = []
    for seed in range(-(-count // SCORED)):
        settings, plan = MetaSettings(dataset=DATA, out=Path("unwritten"), seed=seed), plan_of([ready])
        learner = learner_of([ready], plan, settings)
        if start is not None:
            start.copy_to(learner.network, plan)
        found += [dice for task in learner.tasks.single() if (dice := learner.score(task)) is not None]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study")
    parser.add_argument("starts", type=Path, nargs="+", help="folders of starting models")
    parser.add_argument("--episodes", type=int, default=60, help="of every structure")
    parser.add_argument("--grid", default="full", choices=[*GRIDS])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    models = [StartingModel.load(path) for path in chosen.starts]
    ready = [ready_for(chosen.study, model, chosen.grid) for model in models]
    nothing = episodes(ready[0], None, chosen.episodes)
    print(f"| {chosen.study}, {len(nothing) * SCORED} episodes | Dice | over nothing learned | over the line above |")
    print("|---|---|---|---|")
    print(f"| nothing learned | {statistics.mean(nothing):.3f} | – | – |")
    before = nothing
    for path, model, one in zip(chosen.starts, models, ready, strict=True):
        dices = episodes(one, model, chosen.episodes)
        gains = [
            mean_and_error([100 * (a - b) for a, b in zip(dices, than, strict=True)]) for than in (nothing, before)
        ]
        print(f"| {path.name} | {statistics.mean(dices):.3f} | {' | '.join(gains)} |", flush=True)
        before = dices


if __name__ == "__main__":
    main()
