"""A run that meets too little memory, losses that are no numbers, or a full disk goes on, or ends with nothing lost."""

import errno
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import (
    ENVIRONMENT,
    before_pretraining,
    before_step,
    counters,
    is_finite,
    leftovers,
    listen,
    run_train,
    tiny_study,
)
from typer.testing import CliRunner

from genseg import events, recovery, state
from genseg.cli import app
from genseg.errors import EXIT_OK, RunFailed
from genseg.inference import Predictor
from genseg.methods.joint import Joint
from genseg.plan import Plan
from genseg.runfolder import RunFolder, read_json
from genseg.train import resume

slow = pytest.mark.slow
STEPS = 12
SHORTAGES = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
                        "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 68719476736 bytes."),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory) -> Path:
    return tiny_study(data / "hippocampus", tmp_path_factory.mktemp("tiny"), 2, 1)


def shortage_while(monkeypatch, too_large, error: Exception) -> None:
    """A joint step raises `error` for as long as the plan is `too_large`."""

    def act(joint: Joint) -> None:
        if too_large(joint.plan):
            raise error

    original = Joint.step
    monkeypatch.setattr(Joint, "step", lambda self, step, stage: act(self) or original(self, step, stage))


@slow
@pytest.mark.parametrize("kind", SHORTAGES)
def test_where_memory_runs_out_the_batch_is_halved_with_a_warning_and_the_run_goes_on(
    kind, tiny, tmp_path, monkeypatch
):
    original = Joint.step

    def step(self, number, stage):
        if number >= 3 and self.plan.batch > 1:
            raise SHORTAGES[kind]
        return original(self, number, stage)

    monkeypatch.setattr(Joint, "step", step)
    outcome = run_train(tiny, tmp_path / "run", STEPS)
    assert outcome.status == EXIT_OK and outcome.run.done.exists()
    (warning,) = outcome.named("warning")
    planned = outcome.named("plan")[0].plan
    assert warning.code == "out_of_memory" and f"batch is now {planned['batch'] // 2}" in warning.message
    saved = Plan.load(outcome.run.plan)
    assert (saved.batch, saved.patch) == (planned["batch"] // 2, planned["patch"])


@slow
def test_at_a_batch_of_one_the_patch_shrinks_and_a_stopped_run_goes_on_with_it(tiny, tmp_path, monkeypatch):
    out, started, seen = RunFolder(tmp_path / "run"), [], []
    with monkeypatch.context() as patch:
        voxels = math.prod(Plan.load(run_train(tiny, tmp_path / "other", 1).run.plan).patch)
        shortage_while(
            patch, lambda plan: len(started) > 1 and plan.batch * math.prod(plan.patch) >= voxels, SHORTAGES["cuda"]
        )
        before_step(patch, lambda step: (started.append(step), out.stop.touch() if step == 4 else None))
        stopped = run_train(tiny, out.path, STEPS)
    planned, smaller = stopped.named("plan")[0].plan, Plan.load(out.plan)
    assert stopped.status == 3 and {warning.code for warning in stopped.named("warning")} == {"out_of_memory"}
    assert smaller.batch == 1 and sorted(smaller.patch) < sorted(planned["patch"])
    assert "the patch is now" in stopped.named("warning")[-1].message
    original = Joint.step
    monkeypatch.setattr(
        Joint, "step", lambda self, step, stage: seen.append(self.plan.patch) or original(self, step, stage)
    )
    again = listen(out, lambda log: resume(out.path, log))
    assert again.status == EXIT_OK and out.done.exists() and seen and all(patch == smaller.patch for patch in seen)


@slow
def test_without_memory_for_the_smallest_patch_the_run_ends_with_a_remedy_and_can_go_on(tiny, tmp_path, monkeypatch):
    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        shortage_while(patch, lambda plan: True, SHORTAGES["cpu"])
        with pytest.raises(RunFailed) as ended:
            run_train(tiny, out.path, STEPS)
    assert ended.value.code == "out_of_memory" and "--device" in ended.value.remedy
    plan = Plan.load(out.plan)
    assert plan.batch == 1 and max(plan.patch) <= recovery.COARSEST * 2 ** (len(plan.filters) - 1)
    assert listen(out, lambda log: resume(out.path, log)).status == EXIT_OK


@slow
def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(tiny, tmp_path, monkeypatch):
    shortage_while(monkeypatch, lambda plan: True, RuntimeError("a shape does not fit"))
    with pytest.raises(RuntimeError, match="does not fit"):
        run_train(tiny, tmp_path / "run", STEPS)


def poison(joint: Joint) -> None:
    """One weight is no number any more."""
    with torch.no_grad():
        next(joint.segmenter.parameters()).view(-1)[0] = float("nan")


def poisoned_when(monkeypatch, wanted, after: bool = False) -> None:
    """Before (or after) a joint step the weights are ruined where `wanted(step)`."""
    original = Joint.step

    def step(self, number, stage):
        ruin = wanted(number)
        if ruin and not after:
            poison(self)
        seen = original(self, number, stage)
        if ruin and after:
            poison(self)
        return seen

    monkeypatch.setattr(Joint, "step", step)


@slow
@pytest.mark.parametrize("after", [False, True])
def test_a_weight_that_is_no_number_leads_back_to_the_last_checkpoint_at_half_the_rate(
    after, tiny, tmp_path, monkeypatch
):
    """Once; in the very last step too (after=True), whose own loss does not show it."""
    once = []
    at = STEPS - 1 if after else 6
    poisoned_when(monkeypatch, lambda step: step == at and not once and once.append(step) is None, after)
    outcome = run_train(tiny, tmp_path / "run", STEPS)
    assert outcome.status == EXIT_OK and once == [at]
    (warning,) = outcome.named("warning")
    assert warning.code == "not_finite" and "0.5 of the learning rate" in warning.message
    assert is_finite(outcome.run.last) and is_finite(outcome.run.best)
    assert counters(outcome.run)["rate_scale"] == 0.5 and counters(outcome.run)["step"] == STEPS


@slow
def test_after_going_back_every_network_learns_more_slowly_and_a_resumed_run_too(tiny, tmp_path, monkeypatch):
    once, rates, out = [], {}, RunFolder(tmp_path / "run")
    poisoned_when(monkeypatch, lambda step: step == 4 and not once and once.append(step) is None)
    original = Joint.step

    def step(self, number, stage):
        s = self.synthesis
        optimisers = {"generator": s.generator_optimiser, "discriminator": s.discriminator_optimiser,
                      "meta": s.meta_optimiser}  # fmt: skip
        rates.setdefault(number, []).append({k: o.param_groups[0]["lr"] for k, o in optimisers.items()})
        if number == 7:
            out.stop.touch()
        return original(self, number, stage)

    monkeypatch.setattr(Joint, "step", step)
    run_train(tiny, out.path, STEPS)
    full = {"generator": state.GENERATOR_RATE, "discriminator": state.DISCRIMINATOR_RATE, "meta": state.META_RATE}
    half = {name: rate / 2 for name, rate in full.items()}
    assert rates[0][0] == full and rates[4] == [full, half] and rates[7] == [half]
    listen(out, lambda log: resume(out.path, log))
    assert rates[8] == [half] and rates[11] == [half]


@slow
def test_a_run_that_diverges_again_and_again_ends_with_a_remedy_and_nothing_lost(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    poisoned_when(monkeypatch, lambda step: step >= 6)
    options = ["--iterations", str(STEPS), "--device", "cpu", "--method", "supervised"]
    done = CliRunner().invoke(app, ["train", str(tiny), "--out", str(out), *options])
    assert done.exit_code == 1 and not (out / "done").exists()
    told = [events.parse_event(line) for line in (out / "events.jsonl").read_text().splitlines()]
    warnings = [event.message for event in told if event.event == "warning"]
    assert len(warnings) == recovery.ATTEMPTS and "0.125 of the learning rate" in warnings[-1]
    error, finished = told[-2:]
    assert (error.event, error.code, finished.event, finished.status) == ("error", "diverged", "finished", 1)
    assert error.remedy
    run = RunFolder(out)
    assert is_finite(run.last) and is_finite(run.best)
    Predictor.load(out, "cpu")


@slow
def test_a_generator_that_diverges_while_pretrained_goes_back_too(tiny, tmp_path, monkeypatch):
    once = []
    original = Joint.pretrain

    def pretrain(self, synthesis, step):
        if step == 1 and not once:
            once.append(step)
            with torch.no_grad():
                weight = next(synthesis.generator.parameters())
                weight[(0,) * weight.ndim] = float("inf")
        return original(self, synthesis, step)

    monkeypatch.setattr(Joint, "pretrain", pretrain)
    outcome = run_train(tiny, tmp_path / "run", 8)
    assert outcome.status == EXIT_OK and [event.code for event in outcome.named("warning")] == ["not_finite"]
    assert is_finite(outcome.run.last)


@slow
def test_no_checkpoint_ever_holds_what_is_no_number(tiny, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr("genseg.train.CHECKPOINT_SECONDS", 0.0)  # a checkpoint is due before every step
    poisoned_when(monkeypatch, lambda step: step >= 6, after=True)
    seen = []
    before_pretraining(monkeypatch, lambda step: seen.append(is_finite(run.last)))
    before_step(monkeypatch, lambda step: seen.append(is_finite(run.last)))
    with pytest.raises(RunFailed, match="diverged"):
        run_train(tiny, run.path, STEPS)
    assert len(seen) > 10 and all(seen) and is_finite(run.last) and is_finite(run.best)


@slow
def test_a_full_disk_ends_the_run_in_words_keeps_the_checkpoint_and_the_run_goes_on_later(tiny, tmp_path, monkeypatch):
    run, full = RunFolder(tmp_path / "run"), []
    original = os.replace

    def replace(source, target):
        if full and Path(target) == run.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        before_step(patch, lambda step: full.append(step) if step == 6 else None)
        options = ["--iterations", str(STEPS), "--device", "cpu", "--method", "supervised"]
        done = CliRunner().invoke(app, ["train", str(tiny), "--out", str(run.path), *options])
    told = [events.parse_event(line) for line in run.events.read_text().splitlines()]
    assert done.exit_code == 1 and told[-2].code == "no_disk" and "--resume" in told[-2].remedy
    assert not (run.path / "traceback.txt").exists() and leftovers(run.path) == []
    assert is_finite(run.last) and counters(run)["step"] < 6 + STEPS / 5
    assert listen(run, lambda log: resume(run.path, log)).status == EXIT_OK


@slow
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="mounts a small disk")
def test_a_disk_that_is_really_full_is_told_and_freed_the_run_goes_on(tiny, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        _fill_and_free(tiny, disk, monkeypatch)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill_and_free(tiny: Path, disk: Path, monkeypatch) -> None:
    run, ballast = RunFolder(disk / "run"), disk / "ballast"
    monkeypatch.setattr("genseg.prepare.NEEDED_MB", 1)

    def fill(step: int) -> None:
        if step == 6:
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(disk).free - 300_000))

    with monkeypatch.context() as patch:
        before_step(patch, fill)
        options = ["--iterations", str(STEPS), "--device", "cpu", "--events"]
        done = CliRunner().invoke(app, ["train", str(tiny), "--out", str(run.path), *options])
    assert ballast.exists() and done.exit_code == 1
    assert is_finite(run.last) and not run.done.exists()
    assert not (run.path / "traceback.txt").exists()
    for line in run.events.read_bytes().split(b"\n")[:-1]:
        events.parse_event(line)
    ballast.unlink()
    command = [sys.executable, "-m", "genseg", "train", "--resume", str(run.path)]
    again = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=300)
    assert again.returncode == 0, again.stderr
    assert run.done.exists() and counters(run)["step"] == STEPS
    assert all(entry["split"] == "test" for entry in read_json(run.predictions_index)["cases"])
