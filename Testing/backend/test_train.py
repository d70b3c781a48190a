"""A run of `genseg train` on real scans: what it leaves, says, stops at and refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from tiny_run import (
    ENVIRONMENT,
    before_step,
    counters,
    differences,
    is_finite,
    leftovers,
    listen,
    run_train,
    tiny_study,
)
from typer.testing import CliRunner

from genseg import events, finish, profiling
from genseg.cli import app
from genseg.errors import EXIT_OK, EXIT_STOPPED, Fault, InputFaults, RunFailed
from genseg.evaluate import evaluate_run
from genseg.inference import Predictor
from genseg.methods import joint
from genseg.prepare import prepare
from genseg.runfolder import RunFolder, read_json
from genseg.settings import Settings
from genseg.study import Study, read_study
from genseg.synthesize import synthesize
from genseg.train import resume

slow = pytest.mark.slow
FOLDER = {
    "settings.json", "study.json", "plan.json", "events.jsonl", "checkpoints", "synthetic", "predictions",
    "metrics.json", "model", "report.html", "done",
}  # fmt: skip
CHECKPOINTS = {"last.safetensors", "last.json", "best.safetensors"}


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory) -> Path:
    return tiny_study(data / "hippocampus", tmp_path_factory.mktemp("tiny") / "Größe 24", 2, 1, 1)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genseg.train.METRIC_SECONDS", 0.0)  # a point for each step, however fast the machine
        return run_train(tiny, tmp_path_factory.mktemp("finished") / "Lauf 1", iterations=20)


@slow
def test_a_finished_run_leaves_exactly_the_documented_folder_and_done_is_the_last_file(finished):
    run = finished.run
    assert finished.status == EXIT_OK
    assert {path.name for path in run.path.iterdir()} == FOLDER
    assert {path.name for path in run.checkpoints.iterdir()} == CHECKPOINTS
    assert leftovers(run.path.parent) == []
    others = [path for path in run.path.rglob("*") if path.is_file() and path not in (run.done, run.events)]
    assert run.done.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in others)
    documented = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in documented for name in FOLDER)
    assert all(f"{Path(name).stem}.safetensors" in documented for name in CHECKPOINTS)


@slow
def test_files_can_be_read_by_others_as_the_system_wants_it(finished):
    """A run folder is shared: no file is more private than one that the user makes."""
    plain = finished.run.path.parent / "plain"
    plain.touch()
    modes = {path.name: oct(path.stat().st_mode) for path in finished.run.checkpoints.iterdir()}
    assert set(modes.values()) == {oct(plain.stat().st_mode)}


@slow
def test_every_event_line_is_ascii_and_parses_and_the_run_is_told_from_start_to_finish(finished):
    lines = finished.run.events.read_bytes().decode("ascii").splitlines()
    told = [events.parse_event(line) for line in lines]
    kinds = [event.event for event in told]
    assert kinds[:2] == ["started", "plan"] and kinds[-1] == "finished"
    assert kinds.count("started") == kinds.count("finished") == 1
    assert told[0].method == "genseg+versemi" and not told[0].resumed and told[0].run == str(finished.run.path)
    assert told[1].plan == read_json(finished.run.plan)
    assert told[-1].status == 0 and Path(told[-1].model) == finished.run.best
    phases = {event.phase for event in told if event.event == "progress"}
    assert phases - {"pretrain"} == {"shapes", "train", "predict", "report"}  # a short pretraining may go untold
    steps = [event.step for event in told if event.event == "progress" and event.phase == "train"]
    assert steps == sorted(steps) and steps[-1] == 20
    written = [event for event in told if event.event in ("synthetic", "prediction")]
    assert written and all((finished.run.path / event.path).is_file() for event in written)
    assert {event.event for event in finished.heard} == set(kinds)


@slow
def test_documented_metric_names_are_those_that_a_run_emits(finished):
    text = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text(encoding="utf-8")
    emitted = {event.name for event in finished.named("metric")}
    assert {"loss/real", "loss/synthetic", "learning_rate"} <= emitted
    families = ("meta/strength/", "meta/kernel/")
    unknown = [name for name in emitted if f"`{name}`" not in text and not name.startswith(families)]
    assert unknown == []


@slow
def test_predictions_lie_on_the_very_grid_of_their_scan_with_the_values_of_the_study(finished):
    entries = read_json(finished.run.predictions_index)["cases"]
    study = Study.load(finished.run.study)
    assert {entry["split"] for entry in entries} == {"test", "unlabeled"}
    assert {entry["case"] for entry in entries} == {case.id for case in study.test + study.unlabeled}
    for entry in entries:
        mask = sitk.ReadImage(str(finished.run.predictions / entry["path"]))
        scan = sitk.ReadImage(entry["images"][0])
        for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(mask, of)() == getattr(scan, of)()
        assert set(sitk.GetArrayFromImage(mask).ravel().tolist()) <= {0, 1, 2}
        assert entry["step"] == 20 and 0 <= entry["uncertainty"] <= 1
        assert set(entry["volumes_ml"]) == {"hippocampus anterior", "hippocampus posterior"}


@slow
def test_evaluate_finds_what_the_run_wrote_to_its_metrics(finished, tiny):
    metrics = read_json(finished.run.metrics)["test"]
    again = evaluate_run(finished.run.path, tiny, "test", "cpu", events.EventLog())
    assert again["mean"] == pytest.approx(metrics["mean"])
    assert [case["case"] for case in metrics["cases"]] == [case.id for case in read_study(tiny).test]
    done = subprocess.run(
        [sys.executable, "-m", "genseg", "evaluate", str(finished.run.path), str(tiny), "--json"],
        capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert json.loads(done.stdout)["mean"] == pytest.approx(metrics["mean"])


@slow
def test_pairs_are_numbered_from_zero_and_every_file_of_their_index_is_there(finished):
    pairs = read_json(finished.run.synthetic_index)["pairs"]
    assert [pair["image"][:4] for pair in pairs] == [f"{n:04d}" for n in range(len(pairs))] and pairs
    for pair in pairs:
        image, mask = (sitk.ReadImage(str(finished.run.synthetic / pair[key])) for key in ("image", "mask"))
        assert image.GetSize() == mask.GetSize() and image.GetSpacing() == mask.GetSpacing()
        assert set(sitk.GetArrayFromImage(mask).ravel().tolist()) <= {0, 1, 2}
        assert 0 <= pair["agreement"] <= 1 and -1 <= pair["similarity"] <= 1


@slow
def test_synthesize_writes_new_pairs_and_tells_their_number(finished, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "genseg", "synthesize", str(finished.run.path), "--out", str(tmp_path / "paare"),
         "--count", "3", "--device", "cpu"],
        capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 pairs written" in done.stdout
    pairs = read_json(tmp_path / "paare" / "index.json")["pairs"]
    assert len(pairs) == 3 and len({json.dumps(pair["parameters"]) for pair in pairs}) == 3
    assert all((tmp_path / "paare" / pair[key]).is_file() for pair in pairs for key in ("image", "mask"))


@slow
def test_a_run_without_generator_synthesizes_nothing_and_names_the_structure_it_did_not_find(
    tiny, tmp_path, monkeypatch
):
    """Whether it is found is a running mean, so that two steps move it a tenth of the way."""
    monkeypatch.setattr(joint, "structure_dice", lambda logits, target: torch.tensor([torch.nan, 0.0]))
    monkeypatch.setattr(finish, "FOUND", 0.95)
    outcome = run_train(tiny, tmp_path / "run", iterations=2, method="supervised")
    [said] = [event.message for event in outcome.named("warning") if event.code == "not_found"]
    assert "no hippocampus posterior," in said and "anterior" not in said
    assert is_finite(outcome.run.last), "a structure that no patch shows is left as it was"
    assert not outcome.run.synthetic.exists()
    with pytest.raises(RunFailed, match="no generator"):
        synthesize(outcome.run.path, 1, tmp_path / "pairs", "cpu", 0, events.EventLog())
    assert not (tmp_path / "pairs").exists()


@slow
@pytest.mark.parametrize("method", ["genseg", "separate", "supervised"])
@pytest.mark.parametrize("labelled", [1, 2, 5])
def test_every_method_goes_through_every_stage_with_1_2_and_5_labelled(method, labelled, data, tmp_path):
    """30 steps: nothing synthetic at first, then level 1 (and 3), then all frozen; a step of level 3 is due at 16."""
    study = tiny_study(data / "hippocampus", tmp_path / "study", labelled, test=0)
    outcome = run_train(study, tmp_path / "run", iterations=30, method=method)
    assert outcome.status == EXIT_OK and outcome.run.done.exists() and is_finite(outcome.run.last)
    emitted = {event.name for event in outcome.named("metric")}
    assert ("meta/gradient_norm" in emitted) == (method == "genseg")
    assert outcome.run.synthetic_index.exists() == (method != "supervised")
    assert not outcome.run.predictions.exists() and not outcome.run.metrics.exists()


@slow
@pytest.mark.parametrize(
    ("name", "asked", "network"),
    [("isic2017", "auto", "deeplabv3"), ("isic2017", "dynunet", "dynunet"), ("acdc", "auto", "dynunet")],
)
def test_photos_and_thick_slices_run_from_end_to_end(name, asked, network, data, tmp_path):
    study = tiny_study(data / name, tmp_path / name, 2, 1)
    outcome = run_train(study, tmp_path / "run", iterations=10, segmenter=asked)
    plan = read_json(outcome.run.plan)
    assert outcome.status == EXIT_OK and plan["dims"] == 2 and plan["segmenter"] == network
    assert (plan["slice_axis"] is not None) == (name == "acdc")
    (entry,) = read_json(outcome.run.predictions_index)["cases"]
    mask, scan = (
        sitk.ReadImage(str(path)) for path in (outcome.run.predictions / entry["path"], Path(entry["images"][0]))
    )
    assert mask.GetSize() == scan.GetSize()
    allowed = {0, 255} if name == "isic2017" else {0, 1, 2, 3}
    assert set(sitk.GetArrayFromImage(mask).ravel().tolist()) <= allowed
    assert 0 <= read_json(outcome.run.metrics)["test"]["mean"]["dice"] <= 1


@slow
@pytest.mark.parametrize(
    ("given", "method"), [({"method": "auto"}, "supervised"), ({"method": "auto", "generator": "vae"}, "genseg")]
)
def test_vessels_are_learned_the_plain_way_unless_something_else_is_asked_for(given, method, data, tmp_path):
    study = tiny_study(data / "drive", tmp_path / "study", 2, 0)
    outcome = run_train(study, tmp_path / "run", iterations=3, **given)
    assert outcome.status == EXIT_OK and read_json(outcome.run.settings)["method"] == method
    assert outcome.named("started")[0].method == method
    told = any("long and thin" in note for note in outcome.named("plan")[0].plan["notes"])
    assert told == (method == "supervised") == (not outcome.run.synthetic_index.exists())


@slow
def test_stacks_of_images_without_a_size_in_mm_run_from_end_to_end(tiny, tmp_path):
    """The scans of a 3D study as TIFF: a 3D network, whose pairs and masks are written whole."""
    content = json.loads((tiny / "dataset.json").read_text(encoding="utf-8"))
    for case in [*content["training"], *content["test"]]:
        for key in ("image", "label"):
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(tiny / case[key])))
            case[key] = Path(case[key]).name.replace(".nii.gz", f"_{key}.tif")
            sitk.WriteImage(sitk.GetImageFromArray(array.clip(0, 60000).astype("uint16")), str(tmp_path / case[key]))
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "unlabeled": []}), encoding="utf-8")
    outcome = run_train(tmp_path, tmp_path / "run", iterations=5)
    run = outcome.run
    assert outcome.status == EXIT_OK and run.report.exists() and run.metrics.exists()
    plan, pairs = read_json(run.plan), read_json(run.synthetic_index)["pairs"]
    assert plan["dims"] == 3 and not plan["physical"] and plan["mirror_axes"] == [0, 1, 2]
    for name in (pairs[0]["image"], pairs[0]["mask"]):
        size = sitk.ReadImage(str(run.synthetic / name)).GetSize()
        assert list(size) == plan["patch"][::-1]
    assert "No picture" not in run.report.read_text(encoding="utf-8")


@slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny, tmp_path):
    # Another seed also draws other scans, so all of them are taken.
    one, same, other = (
        run_train(tiny, tmp_path / f"run {i}", iterations=12, seed=seed).run for i, seed in enumerate([3, 3, 4])
    )
    assert differences(one.last, same.last) == [] and differences(one.best, same.best) == []
    weights = [name for name in differences(one.best, other.best) if "conv.weight" in name]
    assert weights


@slow
@pytest.mark.parametrize("limit", [{"iterations": 20}, {"iterations": None, "budget": 12.0}])
def test_after_a_fifth_of_the_training_there_are_a_model_and_predictions(limit, tiny, tmp_path, monkeypatch):
    out, seen = RunFolder(tmp_path / "run"), []
    begin = time.monotonic()

    def look(step: int) -> None:
        usable = out.best.exists() and out.predictions_index.exists()
        seen.append((step / 20 if limit["iterations"] else (time.monotonic() - begin) / 12, usable))

    before_step(monkeypatch, look)
    run_train(tiny, out.path, **limit)
    # With a budget, a margin for the time that reading, a step and the first predictions themselves take.
    due = 0.2 if limit["iterations"] else 0.45
    assert all(usable for share, usable in seen if share >= due) and not seen[0][1]
    assert Predictor.load(out.path, "cpu").plan.dims == 3


@slow
def test_a_budget_ends_the_training_on_time(finished, tiny, tmp_path):
    # Ten seconds, or what a good half of twenty steps takes on this machine.
    budget = max(10.0, 0.6 * counters(finished.run)["elapsed"])
    outcome = run_train(tiny, tmp_path / "run", iterations=None, budget=budget)
    spent = counters(outcome.run)["elapsed"]
    assert outcome.status == EXIT_OK and counters(outcome.run)["step"] > 5
    assert budget <= spent < 1.2 * budget
    pretraining = counters(outcome.run)["pretrain_seconds"]
    assert 0.04 * budget < pretraining < 0.3 * budget  # 8 %, and the step in which it ran out


@slow
def test_start_from_a_run_or_a_bundle_takes_over_its_weights(finished, tiny, tmp_path):
    from safetensors.torch import load_file

    for source in (finished.run.path, finished.run.model):
        name = source.name
        outcome = run_train(tiny, tmp_path / name, iterations=1, method="supervised", init=source, seed=1)
        # What lies before the last layer: the source is asked with prompts, which an ordinary network is not.
        before = {name.removeprefix("backbone."): value for name, value in load_file(finished.run.best).items()
                  if name.startswith("backbone.")}  # fmt: skip
        after = load_file(outcome.run.best)
        moved = max(float((after[key] - value).abs().max()) for key, value in before.items())
        assert moved < 0.02, "one step of warm-up moves a weight by little"
    fresh = load_file(run_train(tiny, tmp_path / "fresh", iterations=1, method="supervised", seed=1).run.best)
    assert max(float((fresh[key] - value).abs().max()) for key, value in before.items()) > 0.1


@slow
def test_a_model_that_does_not_fit_is_refused_before_there_is_a_run_folder(finished, data, tmp_path):
    photos = tiny_study(data / "isic2017", tmp_path / "photos", 1, 0)
    with pytest.raises(InputFaults, match=r"is a 3D network for 1 channel.*need a 2D network for 3 channel") as refused:
        run_train(photos, tmp_path / "run", init=finished.run.path)
    (fault,) = refused.value.faults
    assert fault.code == "init_unfit" and fault.case == "--init" and "leave out --init" in fault.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def genseg_train(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genseg", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=300)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--device", "cuda:7"], 1, ["cuda:7", "--device auto or cpu"]),
        (["--device", "toaster"], 1, ["toaster", "--device auto or cpu"]),
        (["--labelled", "99"], 2, ["99 were asked for", "Ask for at most 2"]),
        (["--unlabelled", "99"], 2, ["99 were asked for", "Ask for at most 1"]),
        (["--init", "nowhere"], 2, ["There is no folder", "nowhere", "Give the folder of a run"]),
    ],
)
def test_a_fault_of_the_command_line_leaves_no_run_folder(options, status, words, tiny, tmp_path):
    done = genseg_train(tiny, "--out", tmp_path / "run", "--iterations", "2", *options)
    said = " ".join(done.stderr.split())
    assert done.returncode == status and all(word in said for word in words), said
    assert "should not" not in said and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_and_is_nothing_unexpected(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = genseg_train(tiny, "--out", tmp_path / "file" / "run", "--iterations", "2", "--device", "cpu")
    said = " ".join(done.stderr.split())
    assert done.returncode == 1 and "cannot be used" in said and "Choose another folder" in said
    assert "should not" not in said and (tmp_path / "file").read_text() == "mine"


def test_a_run_says_that_it_reads_the_scans_before_it_checks_and_plans(tiny, tmp_path, monkeypatch):
    """On large scans that takes minutes."""
    heard: list[events.Event] = []

    def check_study(*given):
        assert [(event.event, event.phase, event.step, event.total) for event in heard] == [
            ("progress", "prepare", 0, 2)
        ]
        raise InputFaults([Fault("enough", "study", "Heard enough.", "Go on.")])

    monkeypatch.setattr("genseg.prepare.check_study", check_study)
    with pytest.raises(InputFaults):
        prepare(Settings(dataset=tiny, out=tmp_path / "run", device="cpu"), events.EventLog([heard.append]))


def test_a_damaged_scan_leaves_no_run_folder_and_no_part_of_one(data, tmp_path):
    study = tiny_study(data / "hippocampus", tmp_path / "study", 2, 1)
    scan = sorted((study / "images").iterdir())[0]
    scan.write_bytes(scan.read_bytes()[:200])
    done = genseg_train(study, "--out", tmp_path / "run", "--iterations", "2")
    assert done.returncode == 2 and scan.name.split(".")[0] in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


@slow
def test_profile_prints_what_a_joint_step_costs_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "ROUNDS", 2)
    options = ["--profile", "--device", "cpu"]
    done = CliRunner().invoke(app, ["train", str(tiny), "--out", str(tmp_path / "none"), *options])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "supervised step", "joint step while level 3 learns", "joint step after that", "mean over a whole training"
    ]  # fmt: skip
    assert 1.1 < float(lines[1].split("=")[1].split("x")[0]) < 10, "a joint step costs more than a supervised one"
    assert list(tmp_path.iterdir()) == []


@slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals to another process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_keep_a_usable_model_and_the_run_goes_on_later(number, tiny, tmp_path):
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "genseg", "train", str(tiny), "--out", str(run.path), "--iterations", "30",
               "--device", "cpu", "--events"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT)
    heard = []
    for line in process.stdout:
        heard.append(events.parse_event(line))
        if heard[-1].event == "prediction":
            process.send_signal(number)
            break
    heard += [events.parse_event(line) for line in process.stdout]
    assert process.wait(timeout=60) == EXIT_STOPPED
    process.stdout.close()
    assert heard[-1].event == "finished" and heard[-1].status == EXIT_STOPPED
    assert run.best.exists() and run.report.exists() and not run.done.exists()
    assert 6 <= counters(run)["step"] < 30
    Predictor.load(run.path, "cpu")
    Settings.load(run.settings)
    again = listen(run, lambda log: resume(run.path, log))
    assert again.status == EXIT_OK and run.done.exists() and not run.stop.exists()
