"""Learn starting models for the benchmark: from some studies, in several ways, all in the same time.

    python Testing/benchmarks/starts.py MODELS --budget 600 --grid light --jobs 2
    python Testing/benchmarks/matrix.py docs/starts.csv --sets kvasir-1 kvasir-5 --arms supervised --lengths 25 50 \\
        --seeds 0 --starts "" MODELS/photographs-imaml-0 MODELS/photographs-pretrain-0

The second command adapts them to a study that they have not seen. A model that is there is not learned again: give
another budget or grid another folder, and so what goes on from another model (`--init`). On a processor every model has
one thread and counts that thread's seconds.
"""

import argparse
import multiprocessing
import shutil
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

from runs import DATA, GRIDS

from genseg.settings import MetaMethod, MetaSettings

# Studies learned from; torso's model-made labels, of which the data set says that they are no expert's, only here.
GROUPS = {
    "photographs": ("isic2017", "busi", "shenzhen", "dsb2018", "drive"),
    "volumes": ("acdc", "torso_ct_mr"),
    "hearts": ("acdc",),
}
METHODS: tuple[MetaMethod, ...] = get_args(MetaMethod)


def learn(out: Path, group: str, settings: MetaSettings, grid: str) -> None:
    """A starting model of all labelled training scans of the group's studies, in `out`."""
    import torch
    from training import OnGrid, on_device

    from genseg import metatrain
    from genseg.device import find_device
    from genseg.events import EventLog
    from genseg.methods.episodes import with_channels
    from genseg.prepare import load
    from genseg.startingmodel import Start
    from genseg.study import read_study

    torch.set_num_threads(1)
    studies = [read_study(DATA / name) for name in GROUPS[group]]
    studies = [s if s.training else s.model_copy(update={"training": s.test}) for s in studies]
    studies = [s.model_copy(update={"unlabeled": [], "test": []}) for s in studies]
    target, log = find_device(settings.device), EventLog()
    logs = [log] * len(studies)
    start = Start(settings.init).model
    ready = load(studies, None, settings.as_training(), find_device("cpu"), logs, OnGrid(grid, start))
    channels = max(one.plan.channels for one in ready)
    ready = [with_channels(one, channels) for one in ready]
    moved = [replace(one, device=target, labelled=on_device(one.labelled, target)) for one in ready]
    now = time.process_time if target.is_cpu else time.monotonic
    metatrain.learn_from(moved, settings, log, start, now)
    print(out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", type=Path, help="folder of the models")
    parser.add_argument("--groups", nargs="*", default=[*GROUPS], choices=[*GROUPS])
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds of each")
    parser.add_argument("--init", type=Path, help="model that all go on from")
    parser.add_argument("--grid", default="full", choices=[*GRIDS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    jobs = []
    for seed, group, method in product(chosen.seeds, chosen.groups, chosen.methods):
        out = chosen.models / f"{group}-{method}-{seed}"
        settings = MetaSettings(
            dataset=DATA / GROUPS[group][0], out=out, method=method, seed=seed, budget=chosen.budget,
            device=chosen.device, init=chosen.init,
        )  # fmt: skip
        if not (out / "done").exists():
            shutil.rmtree(out, ignore_errors=True)  # what was begun and not ended
            jobs.append((out, group, settings, chosen.grid))
    with multiprocessing.get_context("spawn").Pool(chosen.jobs, maxtasksperchild=1) as pool:
        pool.starmap(learn, jobs, chunksize=1)


if __name__ == "__main__":
    main()
