"""kill -9 at twenty random moments loses nothing: real processes of one run, killed and resumed again and again."""

import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import differences, leftovers, run_train, tiny_study

from genseg import events, train
from genseg.runfolder import RunFolder, read_json
from genseg.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from one that has loaded everything"),
]
STEPS = 20
KILLS = 20
SEED = 7


def work(study: str, out: str) -> None:
    """Body of a process: begin the run, or go on with it. Checkpoints come often, so that kills hit them too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train.CHECKPOINT_SECONDS = 0.2
    run, log = RunFolder(out), events.EventLog()
    if run.path.exists():
        status = train.resume(run.path, log)
    else:
        settings = Settings(dataset=study, out=out, device="cpu", iterations=STEPS, budget=None)
        status = train.train(settings, log)
    sys.exit(status)


class Watcher:
    """Reads a run folder as a program beside it would, all the time, and holds it to its rules."""

    def __init__(self, run: RunFolder):
        self.run, self.looks, self._read = run, 0, 0
        self.kinds: Counter[str] = Counter()

    def look(self) -> None:
        self.looks += 1
        for index, key, files in (
            (self.run.predictions_index, "cases", ("path",)),
            (self.run.synthetic_index, "pairs", ("image", "mask")),
        ):
            if index.exists():
                for entry in json.loads(index.read_text(encoding="utf-8"))[key]:
                    assert all((index.parent / entry[name]).stat().st_size > 0 for name in files)
        for path in (self.run.settings, self.run.study, self.run.plan, self.run.metrics):
            if path.exists():
                read_json(path)
        if self.run.events.exists():
            with self.run.events.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
            for line in whole.splitlines():
                self.kinds[events.parse_event(line).event] += 1
            self._read += len(whole) + bool(whole)

    def writing(self, folder: Path) -> bool:
        return folder.is_dir() and any(name.startswith(".part-") for name in os.listdir(folder))

    def finishing(self) -> bool:
        """The last predictions are being made: all steps are done, and `done` is not yet there."""
        counters = self.run.last.with_suffix(".json")
        return counters.exists() and read_json(counters)["step"] == STEPS


def run_until(watcher: Watcher, study: Path, kill_now, seconds: float) -> bool:
    """One process, killed when `kill_now()` or after `seconds`. → whether it was killed before its end."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=work, args=(str(study), str(watcher.run.path)))
    process.start()
    end = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < end and not kill_now():
        watcher.look()
        time.sleep(0.001)
    process.kill()
    process.join()
    watcher.look()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == -9


def a_moment(rng: random.Random, watcher: Watcher, whole: float):
    """(kind, condition, seconds): any moment, or one while a checkpoint is written, or among the last predictions."""
    kind = rng.choice(["any", "any", "checkpoint", "last predictions"])
    if kind == "checkpoint":
        after = time.monotonic() + rng.uniform(0.2, 0.7) * whole
        return kind, lambda: time.monotonic() > after and watcher.writing(watcher.run.checkpoints), whole
    if kind == "last predictions":
        delay = rng.uniform(0.0, 1.5)
        since: list[float] = []

        def now() -> bool:
            if watcher.finishing():
                since.append(time.monotonic())
            return bool(since) and time.monotonic() - since[0] > delay

        return kind, now, 4 * whole
    return kind, lambda: False, rng.uniform(0.05, 0.8) * whole


def test_a_run_killed_at_twenty_random_moments_ends_as_the_uninterrupted_one_bit_for_bit(data, tmp_path):
    study = tiny_study(data / "hippocampus", tmp_path / "study", 2, 1, 1)
    multiprocessing.set_forkserver_preload(["genseg.train", "tiny_run"])
    begin = time.monotonic()
    whole = run_train(study, tmp_path / "whole", STEPS).run
    seconds = time.monotonic() - begin
    rng, kills = random.Random(SEED), Counter()
    runs = [Watcher(RunFolder(tmp_path / "run 0"))]
    while kills.total() < KILLS:
        if runs[-1].run.done.exists():  # it got through: the next kills are another run's
            runs.append(Watcher(RunFolder(tmp_path / f"run {len(runs)}")))
        kind, kill_now, limit = a_moment(rng, runs[-1], seconds)
        if run_until(runs[-1], study, kill_now, limit):
            kills[kind] += 1
    for watcher in runs:
        if not watcher.run.done.exists():
            assert not run_until(watcher, study, lambda: False, 600)
        run = watcher.run
        assert run.done.exists() and leftovers(run.path) == []
        for name in ("last", "best"):
            assert differences(getattr(whole, name), getattr(run, name)) == []
        assert read_json(run.metrics)["test"]["mean"] == read_json(whole.metrics)["test"]["mean"]
        for index in ("predictions_index", "synthetic_index"):
            assert _without_paths(getattr(run, index)) == _without_paths(getattr(whole, index))
        assert watcher.looks > 100 and watcher.kinds["finished"] == 1
    assert all(kills[kind] for kind in ("any", "checkpoint", "last predictions")), kills
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".part-") and not _is_beginning(path)] == []


def _without_paths(index: Path) -> list:
    (entries,) = read_json(index).values()
    return sorted(entries, key=lambda entry: entry.get("case") or entry["image"])


def _is_beginning(path: Path) -> bool:
    """A folder of a process that was killed before its run folder had its name: nothing a reader takes for a run."""
    return path.is_dir() and "-run " in path.name
