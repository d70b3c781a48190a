"""Several studies in one training, on real scans: what they share, what each keeps, and what the run folder holds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from tiny_run import run_train, tiny_study

from genseg.cases import Case, Study
from genseg.check import StudyFacts
from genseg.device import Device
from genseg.events import EventLog
from genseg.imageio import read_label, read_scan
from genseg.labels import LabelTable
from genseg.prepare import load
from genseg.preprocess import WorkingCase, colours_of, to_working_grid
from genseg.runfolder import RunFolder
from genseg.settings import Settings
from genseg.startingmodel import trained_on
from genseg.study import read_study
from genseg.together import differences, make_plans, named_apart, prompts_of

CPU = Device(torch.device("cpu"), "processor", None, "fp32")


def study(name: str, *structures: str) -> Study:
    return Study(name=name, labels=LabelTable.from_names({i: s for i, s in enumerate(structures, start=1)}))


def test_studies_of_one_name_get_names_apart_that_folders_can_have():
    names = [one.name for one in named_apart([study("liver"), study("Liver"), study("a/b: c")])]
    assert names[:2] == ["liver-1", "Liver-2"] and names[2] == "a_b_ c"
    assert [one.name for one in named_apart([study("a"), study("b")])] == ["a", "b"]


def test_structures_of_one_name_share_a_prompt_and_all_others_have_their_own():
    found = prompts_of([study("a", "Liver", "tumour"), study("b", "spleen", "liver ")], dynamic=True)
    assert [one.tasks for one in found] == [[0, 1], [2, 0]]
    assert {one.count for one in found} == {4} and all(one.dynamic for one in found)


def test_studies_that_one_network_cannot_serve_are_told_apart(tmp_path):
    a, b = study("a"), study("b")
    facts = [
        StudyFacts(dims=3, channels=1, physical=True, cases=[]),
        StudyFacts(dims=2, channels=3, physical=False, cases=[]),
    ]
    assert [fault.code for fault in differences([a, b], facts)] == ["studies_differ", "studies_differ"]
    scan = Case(id="x", images=[tmp_path / "x.nii.gz"])
    a, b = a.model_copy(update={"training": [scan]}), b.model_copy(update={"test": [scan]})
    (fault,) = differences([a, b], [facts[0], facts[0]])
    assert fault.code == "same_image" and fault.case == "x" and "a trains" in fault.rule


def test_thick_slices_become_volumes_beside_volumes_and_all_get_one_network(data):
    studies = [read_study(data / name) for name in ("hippocampus", "acdc")]
    pairs = [[(read_scan(c.images), read_label(c.label, one.labels)[0]) for c in one.training[:2]] for one in studies]
    hippocampus, acdc = make_plans(studies, pairs, CPU)
    (alone,) = make_plans(studies[:1], pairs[:1], CPU)
    assert hippocampus == alone
    assert acdc.dims == 3 and acdc.slice_axis is None and acdc.filters == hippocampus.filters
    coarsest = 2 ** (len(acdc.filters) - 1)
    assert all(side % coarsest == 0 and side // coarsest >= 3 for side in acdc.patch)
    (single,) = make_plans(studies[1:], pairs[1:], CPU)
    assert single.dims == 2


def test_photographs_trained_together_get_deeplabv3_where_it_suits_all_of_them(data):
    studies = [read_study(data / name) for name in ("isic2017", "kvasir", "busi")]
    pairs = [[(read_scan(c.images), read_label(c.label, one.labels)[0]) for c in one.training[:3]] for one in studies]
    assert [plan.segmenter for plan in make_plans(studies[:2], pairs[:2], CPU, segmenter="auto")] == ["deeplabv3"] * 2
    plans = make_plans(studies, pairs, CPU, segmenter="auto")
    assert [plan.segmenter for plan in plans] == ["dynunet"] * 3
    assert not any("deeplabv3" in note for plan in plans for note in plan.notes)


def test_scans_without_labels_are_left_alone_where_that_is_wished(data, tmp_path):
    settings = Settings(dataset=data, out=tmp_path, method="genseg", learn_unlabelled=False)
    whole = read_study(data / "hippocampus")
    others = [case.model_copy(update={"label": None}) for case in whole.training[1:3]]
    few = whole.model_copy(update={"training": whole.training[:1], "unlabeled": others})
    (ready,) = load([few], None, settings, CPU, [EventLog()])
    assert ready.unlabelled == [] and len(ready.study.unlabeled) == 2
    (ready,) = load([few], None, settings.model_copy(update={"learn_unlabelled": True}), CPU, [EventLog()])
    assert len(ready.unlabelled) == 2


def test_a_scan_of_another_kind_is_named_and_teaches_nothing(data, tmp_path):
    settings = Settings(dataset=data, out=tmp_path, method="versemi")
    hippocampus, acdc = read_study(data / "hippocampus"), read_study(data / "acdc")
    strange = acdc.training[0].model_copy(update={"label": None})
    own = [case.model_copy(update={"label": None}) for case in hippocampus.training[2:6]]
    few = hippocampus.model_copy(update={"training": hippocampus.training[:2], "unlabeled": [*own, strange]})
    heard: list = []
    (ready,) = load([few], None, settings, CPU, [EventLog([heard.append])])
    warned = [event for event in heard if event.event == "warning" and event.code == "unlike_scan"]
    assert len(warned) == 1 and strange.id in warned[0].message and "segmented all the same" in warned[0].message
    assert [case.id for case in ready.unlabelled] == [case.id for case in own]


def test_scans_without_labels_larger_than_expected_are_read_until_they_fill_the_memory(data, tmp_path, monkeypatch):
    settings = Settings(dataset=data, out=tmp_path, method="versemi")
    whole = read_study(data / "hippocampus")
    others = [case.model_copy(update={"label": None}) for case in whole.training[2:8]]
    few = whole.model_copy(update={"training": whole.training[:2], "unlabeled": others})
    (ready,) = load([few], None, settings, CPU, [EventLog()])
    assert len(ready.unlabelled) == 6
    room = 6 * max(case.image.numel() for case in ready.labelled)  # six scans as large as the labelled ones
    monkeypatch.setattr("genseg.prepare.UNLABELLED_VOXELS", room)
    large = {case.id: scan_of(case, ready.plan, 3) for case in others}
    fit = sum(sum(scan.image.numel() for scan in list(large.values())[:n]) < room for n in range(6))
    monkeypatch.setattr("genseg.prepare._unlabelled_scan", lambda case, plan, device: large[case.id])
    heard: list = []
    (bounded,) = load([few], None, settings, CPU, [EventLog([heard.append])])
    left_out = [e for e in heard if e.event == "warning" and e.code == "unlabelled_left_out"]
    assert 1 < fit < 6 and len(left_out) == 1 and f"from {fit} of the 6" in left_out[0].message
    assert len(bounded.unlabelled) <= fit


def scan_of(case, plan, times: int) -> WorkingCase:
    """The scan on the working grid, several times behind itself."""
    scan = read_scan(case.images)
    return WorkingCase(case.id, torch.cat([to_working_grid(scan, plan)] * times, 1), None, colours_of(scan, plan))


def test_a_plan_tells_the_network_that_it_got_from_another_study(data, monkeypatch):
    studies = [read_study(data / name) for name in ("hippocampus", "acdc")]
    pairs = [[(read_scan(c.images), read_label(c.label, one.labels)[0]) for c in one.training[:2]] for one in studies]
    deep = make_plans(studies[:1], pairs[:1], CPU)[0]
    cut = [deep.model_copy(update={key: getattr(deep, key)[:3] for key in ("filters", "kernels", "strides")}), deep]
    monkeypatch.setattr("genseg.together.make_plan", lambda *given: cut.pop(0))
    shallow, other = make_plans(studies, pairs, CPU)
    assert other.filters == shallow.filters and other.memory_mb < deep.memory_mb
    assert (
        "that of hippocampus" in other.notes[-1]
        and " / ".join(map(str, shallow.filters)) + " filters" in other.notes[-1]
    )


# --- a whole run ---------------------------------------------------------------------------------------------------


def genseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "genseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two tiny studies and a run of both."""
    folder = tmp_path_factory.mktemp("together")
    studies = [tiny_study(data / name, folder / name, 2, 1, 2) for name in ("hippocampus", "acdc")]
    run = folder / "run"
    done = genseg("train", *studies, "--iterations", 12, "--out", run, "--method", "genseg+versemi")
    assert done.returncode == 0, done.stderr[-2000:]
    return studies[0], studies[1], run


def test_a_study_given_twice_is_refused(two, tmp_path):
    for again in (two[0], two[0] / "dataset.json"):
        done = genseg("train", two[0], again, "--out", tmp_path / "run")
        assert done.returncode == 2 and "given several times" in done.stderr and not (tmp_path / "run").exists()


def test_parts_are_left_out_only_of_versemi_and_only_those_there_are(two, tmp_path):
    for arguments in (("--method", "genseg", "--without", "prompts"), ("--without", "nonsense")):
        done = genseg("train", two[0], "--out", tmp_path / "run", *arguments)
        assert done.returncode == 2 and "versemi" in done.stderr and not (tmp_path / "run").exists()


def test_a_warning_stands_in_its_studys_own_events_and_report_and_in_the_runs_under_its_name(two, tmp_path):
    study = tmp_path / "strange"
    shutil.copytree(two[0], study)
    content = json.loads((study / "dataset.json").read_text(encoding="utf-8"))
    heart = Study.load(RunFolder(two[2]).saved_studies()[1].study).unlabeled[0]
    content["unlabeled"].append({"id": "a-heart", "image": str(heart.images[0])})
    (study / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    done = genseg("train", study, two[1], "--iterations", 2, "--out", tmp_path / "run", "--method", "versemi")
    assert done.returncode == 0, done.stderr[-2000:]
    run = RunFolder(tmp_path / "run")

    def warned(folder: RunFolder) -> list[str]:
        events = [json.loads(line) for line in folder.events.read_text(encoding="utf-8").splitlines()]
        return [event["message"] for event in events if event["event"] == "warning" and event["code"] == "unlike_scan"]

    first, second = run.saved_studies()
    assert len(warned(first)) == 1 and warned(first)[0].startswith("a-heart") and not warned(second)
    assert warned(run) == [f"{first.path.name}: {warned(first)[0]}"]
    for page, told in ((first, True), (second, False), (run, True)):
        assert ("a-heart does not look like" in page.report.read_text(encoding="utf-8")) is told
    assert "The model of each study lies in its folder" in done.stderr


def test_a_lost_order_of_the_studies_is_told(two, tmp_path):
    shutil.copytree(two[2], tmp_path / "run")
    (tmp_path / "run" / "done").unlink()
    (tmp_path / "run" / "studies" / "order.json").unlink()
    done = genseg("train", "--resume", tmp_path / "run")
    assert done.returncode == 1 and "order.json is damaged: it is missing" in done.stderr, done.stderr


def test_a_model_names_all_studies_it_was_trained_on_wherever_its_folder_lies(two, tmp_path):
    shutil.copytree(two[2] / "studies" / "acdc", tmp_path / "copy")
    os.symlink(two[2] / "studies" / "acdc", tmp_path / "link")
    for path in (two[2] / "studies" / "acdc", tmp_path / "copy", tmp_path / "link"):
        assert [one.name for one in trained_on(RunFolder(path))] == ["hippocampus", "acdc"]
    (tmp_path / "copy" / "together.json").unlink()  # as runs of earlier versions are
    assert [one.licence for one in trained_on(RunFolder(tmp_path / "copy"))][1:] == ["unknown"]


def test_each_study_has_a_folder_like_a_runs_own(two):
    run = RunFolder(two[2])
    assert all(folder.done.exists() for folder in run.saved_studies())
    assert run.done.exists() and run.report.exists() and run.last.exists() and not run.study.exists()
    for folder, name in zip(run.saved_studies(), ("hippocampus", "acdc"), strict=True):
        assert folder.path == run.path / "studies" / name
        for file in (folder.settings, folder.study, folder.plan, folder.best, folder.events, folder.report):
            assert file.exists(), file
        assert (folder.model / "configs" / "inference.json").exists()
        read = Study.load(folder.study)
        values = {label.value for label in read.labels.labels}
        cases = json.loads(folder.predictions_index.read_text(encoding="utf-8"))["cases"]
        assert {case["case"] for case in cases} == {case.id for case in read.unlabeled + read.test}
        for case in cases:
            mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder.predictions / case["path"])))
            assert set(np.unique(mask).tolist()) <= values
            assert set(case["volumes_ml"]) == {label.name for label in read.labels.structures}
        assert set(json.loads(folder.metrics.read_text(encoding="utf-8"))["test"]["labels"]) <= {
            s.name for s in read.labels.structures
        }
        assert f"studies/{name}/report.html" in run.report.read_text(encoding="utf-8")


def test_the_runs_own_events_name_the_study_and_lead_to_its_files(two):
    run = RunFolder(two[2])
    events = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    names = {event["name"].split("/")[0] for event in events if event["event"] == "metric"}
    assert names == {"hippocampus", "acdc"}
    paths = [event["path"] for event in events if event["event"] in ("prediction", "synthetic")]
    assert paths and all(path.startswith("studies/") and (run.path / path).exists() for path in paths)
    assert [event["event"] for event in events].count("finished") == 1
    own = [json.loads(line) for line in run.saved_studies()[0].events.read_text(encoding="utf-8").splitlines()]
    assert own[0]["event"] == "started" and own[-1]["event"] == "finished"


def test_a_model_for_which_study_is_asked_for_and_the_answer_works(two, tmp_path):
    scan = next((two[1] / "images").iterdir())
    refused = genseg("predict", two[2], scan, "--out", tmp_path / "no")
    assert refused.returncode == 1 and str(two[2] / "studies" / "acdc") in refused.stderr + refused.stdout
    done = genseg("predict", two[2] / "studies" / "acdc", scan, "--out", tmp_path / "masks")
    assert done.returncode == 0, done.stderr
    (case,) = json.loads((tmp_path / "masks" / "index.json").read_text(encoding="utf-8"))["cases"]
    assert len(case["volumes_ml"]) == 3
    start = genseg("train", two[1], "--init", two[2], "--out", tmp_path / "run")
    assert start.returncode == 2 and str(two[2] / "studies" / "acdc") in start.stderr
    scored = genseg("evaluate", two[2] / "studies" / "hippocampus", two[0], "--json")
    assert scored.returncode == 0 and json.loads(scored.stdout)["cases"]


def test_a_run_says_which_test_scans_it_saw_without_labels_and_that_it_was_too_short_to_learn_from_them(data, tmp_path):
    folder = tiny_study(data / "isic2017", tmp_path / "study", 2, 2, 1)
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    content["unlabeled"].append(content["test"][0]["image"])
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    done = run_train(folder, tmp_path / "run", iterations=2, method="versemi")
    seen = json.loads(done.run.metrics.read_text(encoding="utf-8"))["seen_unlabelled"]
    assert seen == [Path(content["test"][0]["image"]).stem]
    report = done.run.report.read_text(encoding="utf-8")
    assert "references it had never seen (1 of them" in report and "that it had never seen" not in report
    assert [w.message for w in done.named("warning") if w.code == "too_short" and "made 2 steps" in w.message]


def test_faults_of_all_studies_are_told_at_once(two, tmp_path):
    broken = []
    for study_ in two[:2]:
        content = json.loads((study_ / "dataset.json").read_text(encoding="utf-8"))
        content["training"][0]["label"] = f"gone-{study_.name}.nii.gz"
        (tmp_path / study_.name).mkdir()
        for split in ("training", "test"):
            content[split] = [{k: str(study_ / v) if k == "image" else v for k, v in c.items()} for c in content[split]]
        (tmp_path / study_.name / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
        broken.append(tmp_path / study_.name)
    done = genseg("train", *broken, "--iterations", 5, "--out", tmp_path / "run")
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "gone-hippocampus" in said and "gone-acdc" in said
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_of_two_studies_ends_as_an_uninterrupted_one(two, tmp_path):
    """Stopped before its first step, and gone on with from there."""
    from genseg.prepare import prepare_again
    from genseg.schedule import Clock
    from genseg.state import build_state
    from genseg.train import pretrain_step, train_step

    run = RunFolder(two[2])
    settings = Settings.load(run.settings)

    def advance(state, steps: int) -> None:
        clock = Clock(settings)
        while clock.pretrain_progress(state.counters.pretrain_step) < 1:
            pretrain_step(state, clock)
        for _ in range(steps):  # late enough for everything to be at work
            state.counters.step = max(state.counters.step, 400)
            train_step(state, 0.5)

    ends = []
    for at in (3, 6):
        state = build_state(prepare_again(run, settings, EventLog()), settings)
        advance(state, at)
        state.save(tmp_path / "last.safetensors")
        twin = build_state(prepare_again(run, settings, EventLog()), settings)
        twin.load(tmp_path / "last.safetensors")
        advance(twin, 6 - at)
        ends.append(twin.modules())
    assert {"hippocampus/meta", "acdc/generator"} <= ends[0].keys()
    for name, module in ends[0].items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, ends[1][name].state_dict()[key]), f"{name} {key}"
