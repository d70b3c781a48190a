"""The module's window, driven as a user would: real .ui, real scene, real training program."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from GenSegSlicerLib.Batches import Batches
from GenSegSlicerLib.StudyFiles import writeVolume
from GenSegSlicerLib.Voxels import ijkToRas
from opened import Opened, coarseHippocampi, hippocampi, slicersPython
from pythonqt.fixture import slicerRig  # noqa: F401
from written_run import WrittenRun, head

ENDED = ("done", "stopped", "failed")


@pytest.fixture
def opened(slicerRig, tmp_path):  # noqa: F811
    return Opened(slicerRig, tmp_path / "results")


@pytest.fixture
def labelled(opened, data, tmp_path):
    """Five real scans of `scans`, coarse; three of them drawn on."""
    opened.scans = coarseHippocampi(data, 7, tmp_path)
    opened.addScans([file for file, _labels in opened.scans[:5]])
    volumes = [opened.widget.conductor.scansPanel._rows[i].volumeNode for i in range(5)]
    for volume, (_file, labels) in zip(volumes[:3], opened.scans[:3], strict=True):
        opened.draw(volume, labels)
    opened.rig.pump(0.1)
    return opened


def processIsGone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:  # a process that ended and was not waited for is gone, too
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_an_empty_scene_says_what_to_do_and_offers_nothing_that_cannot_work(opened):
    ui = opened.ui
    assert "Add files" in ui.scansHintLabel.text and ui.scansHintLabel.visible
    assert not ui.trainButton.enabled and "Label at least one scan" in ui.trainButton.toolTip
    for name in (
        "labelButton",
        "suggestButton",
        "loadRunButton",
        "acceptButton",
        "excludeButton",
        "segmentFilesButton",
    ):
        assert not getattr(ui, name).enabled, name


def test_without_a_main_window_the_module_opens_and_shows_scans(slicerRig, tmp_path, data):  # noqa: F811
    slicerRig.removeMainWindow()
    opened = Opened(slicerRig, tmp_path)
    volume = opened.logic.loadScan(hippocampi(data, 1)[0][0])
    slicerRig.pump(0.2)
    assert [row[0] for row in opened.rows()] == [volume.GetName()]
    opened.select(volume.GetName())


def test_added_files_are_listed_and_the_use_that_is_picked_is_kept_in_the_scene(opened, data):
    opened.addScans([file for file, _labels in hippocampi(data, 2)])
    assert [row[1] for row in opened.rows()] == ["To segment", "To segment"]
    opened.rig.select(opened.ui.scansTable.cellWidget(1, 1), "Test")
    opened.rig.pump(0.2)
    volume = opened.widget.conductor.scansPanel._rows[1].volumeNode
    assert volume.GetAttribute("GenSegSlicer.Role") == "test"
    assert [row[1] for row in opened.rows()] == ["To segment", "Test"]


def test_a_file_that_is_no_scan_is_named(opened, tmp_path):
    broken = tmp_path / "broken.nrrd"
    broken.write_text("no image")
    opened.rig.answer([str(broken)])
    opened.rig.answer("Ok", contains="broken.nrrd")
    opened.click("addFilesButton")
    assert len(opened.rig.dialogs) == 2 and opened.rows() == []


def test_every_scan_is_labelled_with_the_structures_of_the_first(labelled):
    name = labelled.rows()[3][0]
    labelled.select(name)
    labelled.click("labelButton")
    ui, scan = labelled.ui, labelled.widget.conductor.scansPanel.selectedScan()
    assert ui.editorFrame.visible and name in ui.editorTitleLabel.text
    segmentation = labelled.widget.conductor.scansPanel.editor.editor.segmentationNode().GetSegmentation()
    names = [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())]
    assert names == ["Anterior", "Posterior"]
    first = labelled.widget.conductor.scansPanel._rows[0].segmentationNode.GetSegmentation()
    for i in range(2):
        assert segmentation.GetNthSegment(i).GetColor() == first.GetNthSegment(i).GetColor()
    mask = np.zeros(slicer.util.arrayFromVolume(scan.volumeNode).shape, np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    node = labelled.widget.conductor.scansPanel.editor.editor.segmentationNode()
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segmentation.GetNthSegmentID(0), scan.volumeNode)
    labelled.click("doneButton")
    assert not ui.editorFrame.visible
    assert labelled.rows()[3][1] == "Labeled"


def test_a_suggested_scan_is_selected_with_the_reason(labelled):
    labelled.click("suggestButton")
    assert labelled.widget.conductor.scansPanel.selectedScan().name in [row[0] for row in labelled.rows()[3:]]
    assert labelled.ui.suggestionLabel.text


def test_faults_of_the_study_are_told_all_at_once_and_nothing_is_begun(labelled):
    scans = labelled.widget.conductor.scansPanel._rows
    for scan in scans[:2]:  # the second structure over the first
        inside = scan.segmentationNode.GetSegmentation()
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(
            scan.segmentationNode, inside.GetNthSegmentID(0), scan.volumeNode
        )
        inside.SeparateSegmentLabelmap(inside.GetNthSegmentID(1))
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            mask.copy(), scan.segmentationNode, inside.GetNthSegmentID(1), scan.volumeNode
        )
    labelled.rig.answer("Ok", contains="mended")
    labelled.click("trainButton")
    text = labelled.rig.dialogs[-1].text
    assert scans[0].name in text and scans[1].name in text and "overlap" in text.lower()
    assert not labelled.logic.work.controller.active and labelled.ui.trainButton.enabled
    assert not list(labelled.folder.glob("*-*")) and not list((labelled.folder / "studies").glob("*"))


def test_a_declined_installation_starts_nothing_and_says_why(slicerRig, tmp_path, data, monkeypatch):  # noqa: F811
    opened = Opened(slicerRig, tmp_path / "results", external=False)
    slicersPython(tmp_path, monkeypatch)
    scan = hippocampi(data, 1)[0]
    opened.addScans([scan[0]])
    opened.draw(opened.widget.conductor.scansPanel._rows[0].volumeNode, scan[1])
    needs = tmp_path / "requirements.txt"
    needs.write_text("genseg-package-that-is-not-there>=1.0\n")
    opened.widget.conductor.installing.requirements = needs
    monkeypatch.setattr("GenSegSlicerLib.Dependencies.TORCH", ("numpy", "1.0"))
    slicerRig.answer("Cancel", contains="genseg-package-that-is-not-there")
    slicerRig.answer("Ok", contains="you declined")
    opened.click("trainButton")
    assert not opened.logic.work.controller.active and not (tmp_path / "results").exists()


def test_while_slicer_runs_its_tests_nothing_is_installed(slicerRig, tmp_path, data, monkeypatch):  # noqa: F811
    opened = Opened(slicerRig, tmp_path / "results", external=False)
    slicersPython(tmp_path, monkeypatch)
    slicerRig.setTesting()
    scan = hippocampi(data, 1)[0]
    volume = opened.logic.loadScan(scan[0])
    opened.draw(volume, scan[1])
    needs = tmp_path / "requirements.txt"
    needs.write_text("genseg-package-that-is-not-there>=1.0\n")
    opened.widget.conductor.installing.requirements = needs
    opened.click("trainButton")
    assert not opened.logic.work.controller.active and not (tmp_path / "results").exists()


def test_a_run_that_fails_says_why_and_the_button_is_back(labelled):
    labelled.widget._parameterNode.device = "cuda:7"
    labelled.click("trainButton")
    assert labelled.logic.work.controller.active and labelled.ui.trainButton.text == "Stop"
    labelled.waitForEnd()
    assert labelled.logic.work.controller.state == "failed"
    assert "cuda" in labelled.ui.messageLabel.text.lower() and labelled.ui.messageLabel.visible
    assert labelled.ui.trainButton.text == "Train and segment" and labelled.ui.trainButton.enabled


def test_a_segmentation_that_came_from_elsewhere_can_be_chosen_for_a_scan(opened, data):
    file, labels = hippocampi(data, 1)[0]
    opened.addScans([file])
    volume = opened.widget.conductor.scansPanel._rows[0].volumeNode
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "from elsewhere")
    node.CreateDefaultDisplayNodes()
    segmentId = node.GetSegmentation().AddEmptySegment("", "Anterior")
    slicer.util.updateSegmentBinaryLabelmapFromArray((labels == 1).astype("uint8"), node, segmentId, volume)
    node.RemoveNodeReferenceIDs(node.GetReferenceImageGeometryReferenceRole())
    opened.rig.pump(0.2)
    assert opened.rows()[0][1] == "To segment"
    opened.rig.select(opened.ui.scansTable.cellWidget(0, 2), "from elsewhere")
    opened.rig.pump(0.2)
    assert opened.rows()[0][1:] == ("Labeled", "1 structure drawn")


def test_selecting_another_scan_while_labeling_goes_on_labeling_there(labelled):
    panel = labelled.widget.conductor.scansPanel
    labelled.select(labelled.rows()[0][0])
    labelled.click("labelButton")
    labelled.select(labelled.rows()[1][0])
    assert panel.editor.isOpen and panel.editor.volumeNode is panel.selectedScan().volumeNode
    assert panel.editor.editor.segmentationNode() is panel.selectedScan().segmentationNode
    assert panel.editor.editor.sourceVolumeNode() is panel.selectedScan().volumeNode


def test_a_scan_removed_while_it_is_labelled_closes_the_editor(labelled):
    labelled.select(labelled.rows()[0][0])
    labelled.click("labelButton")
    slicer.mrmlScene.RemoveNode(labelled.widget.conductor.scansPanel.editor.volumeNode)
    labelled.rig.pump(0.2)
    assert not labelled.ui.editorFrame.visible and len(labelled.rows()) == 4


def test_leaving_and_entering_keeps_the_editor_and_what_was_said(labelled):
    labelled.select(labelled.rows()[0][0])
    labelled.click("labelButton")
    labelled.logic.work.notes = ["something to know"]
    labelled.widget.conductor.trainPanel.showState()
    labelled.rig.leave()
    labelled.widget.enter()
    labelled.rig.pump(0.1)
    assert labelled.ui.editorFrame.visible and labelled.ui.messageLabel.text == "something to know"


def test_a_folder_is_added_without_its_segmentations(opened, data, tmp_path):
    file = hippocampi(data, 1)[0][0]
    for name in ("a.nii.gz", "a.seg.nii.gz", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(file.read_bytes())
    opened.rig.answer(str(tmp_path))
    opened.click("addFolderButton")
    assert len(opened.rows()) == 1


def test_a_device_that_this_computer_lacks_is_shown_and_kept(opened):
    opened.widget._parameterNode.device = "cuda:3"
    opened.rig.pump(0.1)
    opened.widget.conductor.trainPanel.showDevices([("cpu", "processor")], "")
    assert opened.ui.deviceComboBox.currentData == "cuda:3" and "not found" in opened.ui.deviceComboBox.currentText
    opened.ui.minutesSpinBox.value = 77
    assert opened.widget._parameterNode.device == "cuda:3" and opened.widget._parameterNode.minutes == 77


def test_a_typed_folder_is_taken_once_and_remembered_for_the_next_scene(opened, tmp_path):
    asked = []
    opened.widget.conductor.trainPanel.actions.settingsChanged = lambda: asked.append(1)
    opened.rig.type(opened.ui.outputFolderEdit, str(tmp_path / "other"))
    opened.rig.pump(0.8)
    assert opened.widget._parameterNode.outputFolder == str(tmp_path / "other") and len(asked) == 1
    assert opened.rig.app.userSettings().value("GenSegSlicer/OutputFolder") == str(tmp_path / "other")


def test_no_scene_can_name_a_program_that_is_started_or_change_the_users_own_folder(opened, tmp_path):
    before = opened.rig.app.userSettings().value("GenSegSlicer/OutputFolder")
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    evil.chmod(0o755)
    node = opened.widget._parameterNode.parameterNode
    node.SetParameter("externalPython", str(evil))
    opened.widget._parameterNode.outputFolder = str(tmp_path / "foreign")
    saved = opened.rig.saveScene(tmp_path / "scene")
    opened.rig.closeScene()
    opened.rig.openScene(saved)
    opened.rig.pump(1.0)
    assert not (tmp_path / "ran").exists()
    assert opened.widget._parameterNode.outputFolder == str(tmp_path / "foreign")
    assert opened.rig.app.userSettings().value("GenSegSlicer/OutputFolder") == before


@pytest.mark.slow
def test_closing_the_scene_ends_the_process(labelled):
    labelled.trainFor(600)
    labelled.click("trainButton")
    pid = labelled.logic.work.controller._process.pid
    labelled.wait(lambda: labelled.logic.work.controller.state == "running")
    labelled.rig.closeScene()
    labelled.wait(lambda: processIsGone(pid), 10)
    labelled.rig.pump(0.2)
    ui = labelled.ui
    assert labelled.rows() == [] and not ui.trainButton.enabled and ui.trainButton.text == "Train and segment"
    assert ui.budgetComboBox.enabled and ui.outputFolderEdit.enabled and not ui.progressBar.visible
    assert "resumed" in ui.messageLabel.text and not labelled.widget.conductor.resultsPanel.busy


@pytest.mark.slow
def test_a_second_stop_ends_at_once_and_everything_can_be_pressed_again(labelled):
    labelled.trainFor(600)
    labelled.click("trainButton")
    labelled.rig.pump(1.1)  # else it counts as a double click
    labelled.click("trainButton")
    assert labelled.ui.trainButton.text == "Stop at once"
    labelled.click("trainButton")
    assert labelled.logic.work.controller.active, "a double click is no second stop"
    if labelled.rig.pump(2.2, lambda: not labelled.logic.work.controller.active):
        return  # it was quicker than we
    labelled.click("trainButton")
    assert not labelled.logic.work.controller.active
    assert labelled.ui.trainButton.text == "Train and segment" and labelled.ui.trainButton.enabled
    assert labelled.ui.budgetComboBox.enabled and not labelled.widget.conductor.resultsPanel.busy
    assert not list((labelled.folder / "studies").glob("*")), "no copies of scans stay of a run that never began"


@pytest.mark.slow
def test_quitting_slicer_ends_the_process(labelled):
    labelled.click("trainButton")
    pid = labelled.logic.work.controller._process.pid
    labelled.rig.pump(1.0)
    labelled.rig.quit()
    assert processIsGone(pid)


def batchOf(opened, data, count: int = 1) -> tuple:
    """(run, folder of masks of more scans), as written by an earlier session."""
    run, batch = WrittenRun(opened.folder / "run"), opened.folder / "segmented" / "monday"
    run.write("settings.json", {"method": "genseg", "dataset": "x", "out": "y"})
    run.write("checkpoints/best.safetensors", "")
    Batches(run.folder).remember(batch)
    batch.mkdir()
    cases = []
    for number, (image, labels) in enumerate(hippocampi(data, count)):
        mask = sitk.GetImageFromArray(labels)
        mask.CopyInformation(sitk.ReadImage(str(image)))
        sitk.WriteImage(mask, str(batch / f"{number}.nii.gz"))
        case = {"case": f"case {number}", "path": f"{number}.nii.gz", "images": [str(image)]}
        cases.append(case | {"volumes_ml": {"head": 1.5}, "uncertainty": 0.1})
    (batch / "index.json").write_text(json.dumps({"cases": cases}))
    return run, batch


def test_masks_of_more_scans_are_listed_below_their_training_and_can_be_loaded_and_removed_later(opened, data):
    run, batch = batchOf(opened, data)
    opened.rig.leave()
    opened.widget.enter()
    ui = opened.ui
    ui.resultsCollapsibleButton.collapsed = False
    assert ui.runComboBox.count == 2 and "more scans, monday" in ui.runComboBox.itemText(1)
    ui.runComboBox.setCurrentIndex(1)
    ui.runComboBox.activated.emit(1)
    assert "1 more scans" in ui.runLabel.text and not ui.resumeButton.enabled
    opened.click("loadRunButton")
    opened.wait(lambda: opened.widget.conductor._bringing is None)
    assert ui.resultsTable.rowCount == 1 and ui.runComboBox.currentIndex == 1
    volume, segmentation = opened.logic.session.predictionOf(batch, "case 0")
    assert volume is not None and segmentation.GetSegmentation().GetNumberOfSegments() == 2

    opened.rig.answer("Yes", contains="The training with its model stays")
    opened.click("removeRunButton")
    assert not batch.exists() and run.folder.exists() and ui.runComboBox.count == 1
    assert ui.resultsTable.rowCount == 0


# --- a run beside other work ---


def made(opened, name: str, seed: int = 0):
    """A volume of 10 x 20 x 16 voxels in the scene."""
    voxels = np.random.default_rng(seed).integers(0, 999, (10, 20, 16)).astype(np.int16)
    volume = slicer.util.addVolumeFromArray(voxels, name=name)
    opened.rig.pump(0.2)
    return volume


def finished(opened, volume) -> WrittenRun:
    """A run with a model and a prediction for the volume."""
    run = WrittenRun(opened.folder / "run")
    run.write("settings.json", {"method": "genseg", "dataset": "x", "out": "y"})
    run.write("checkpoints/best.safetensors", "")
    case = opened.logic.session.scans.caseId(volume)
    labels = np.zeros((10, 20, 16), np.uint8)
    labels[3:6, 5:9, 5:9] = 1
    (run.folder / "predictions").mkdir()
    writeVolume(labels, ijkToRas(volume), run.folder / "predictions" / f"{case}.nrrd")
    run.predict(case, {"head": 1.0}, 0.2, f"{case}.nrrd")
    return run


def work(opened, seconds: float, run: WrittenRun | None = None) -> None:
    """A process at work, as after the button was pressed."""
    opened.logic.work.controller.start(["sleep", str(seconds)], None if run is None else run.folder)
    opened.widget.conductor._begun()


def redBackground() -> str:
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    return slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID()).GetName()


@pytest.mark.parametrize("method", ["genseg+versemi", "versemi", "supervised"])
def test_nobody_is_left_waiting_for_pairs_that_the_method_does_not_make(opened, method):
    run = finished(opened, made(opened, "a"))
    (run.folder / "settings.json").unlink()
    work(opened, 60, run)
    opened.rig.pump(1.0)
    assert opened.ui.pairLabel.text == "", "what the method is nobody knows yet"
    run.write("settings.json", {"method": method, "dataset": "x", "out": "y"})
    opened.wait(lambda: opened.ui.pairLabel.text)
    told = opened.ui.pairLabel.text
    assert ("appear here" in told) == (method == "genseg+versemi")
    assert ("has no generator" in told) == (method != "genseg+versemi")
    os.kill(opened.logic.work.controller._process.pid, signal.SIGKILL)
    left = "" if method == "genseg+versemi" else told
    opened.waitForEnd(20)
    assert opened.ui.pairLabel.text == left, "nothing is waited for any more"


@pytest.mark.parametrize("where", ["in another module", "in the editor", "here"])
def test_the_end_of_a_run_shows_its_first_mask_only_to_who_is_not_drawing(opened, where):
    first, other = made(opened, "a"), made(opened, "b", 1)
    run = finished(opened, first)
    opened.select("b")
    work(opened, 0.5, run)
    if where == "in another module":
        opened.rig.leave()
        slicer.util.setSliceViewerLayers(background=other)
    if where == "in the editor":
        opened.click("labelButton")
    opened.waitForEnd(20)
    opened.wait(lambda: opened.widget.conductor._bringing is None)
    assert opened.ui.resultsTable.rowCount == 1
    assert redBackground() == ("a" if where == "here" else "b")
    assert opened.ui.editorFrame.visible == (where == "in the editor")


def test_while_a_run_is_at_work_no_other_is_loaded_and_the_table_of_scans_stands_still(opened):
    run = finished(opened, made(opened, "a"))
    panel, refreshes = opened.widget.conductor.scansPanel, []
    opened.widget.conductor.resultsPanel.refreshRuns()
    assert opened.ui.loadRunButton.enabled
    work(opened, 60, run)
    opened.logic.work.controller.progress.predictions = {"a": {}}
    opened.rig.pump(3)
    panel.changed = lambda: refreshes.append(1)
    opened.rig.pump(5)
    assert refreshes == [] and not opened.ui.loadRunButton.enabled
    opened.logic.work.controller.forceStop()


def test_a_list_that_is_unfolded_in_the_table_stays_until_something_is_chosen(opened):
    made(opened, "a")
    box = opened.ui.scansTable.cellWidget(0, 1)
    box.showPopup()
    made(opened, "b", 1)
    assert opened.ui.scansTable.rowCount == 1 and box.view().visible
    box.hidePopup()
    opened.rig.pump(0.3)
    assert opened.ui.scansTable.rowCount == 2


def test_a_double_click_on_the_button_starts_and_does_not_stop(labelled):
    labelled.trainFor(30)
    labelled.click("trainButton")
    labelled.click("trainButton")
    assert labelled.logic.work.controller.state in ("starting", "running")
    labelled.logic.work.controller.forceStop()


def test_a_run_that_ended_with_its_scene_by_force_can_be_resumed_at_once(opened):
    run = finished(opened, made(opened, "a"))
    run.write("checkpoints/last.safetensors", "")
    begun = {"event": "started", "time": time.time(), "run": "x", "method": "genseg", "device": "cpu"}
    (run.folder / "events.jsonl").write_text(json.dumps(begun) + "\n")
    opened.logic.work.backend = lambda: None
    opened.logic.work._control = lambda backend: None
    opened.logic.work.controller.resume = lambda folder: work(opened, 60, run) or True
    opened.logic.work.resume(run.folder)
    opened.rig.closeScene()
    opened.rig.pump(0.3)
    assert "resumed" in opened.ui.messageLabel.text and opened.ui.resumeButton.enabled


def test_a_segmentation_can_be_taken_from_a_scan(opened):
    opened.draw(made(opened, "a"), np.ones((10, 20, 16), np.uint8), {1: "x"})
    opened.rig.pump(0.2)
    opened.rig.select(opened.ui.scansTable.cellWidget(0, 2), "–")
    opened.rig.pump(0.3)
    assert opened.ui.scansTable.cellWidget(0, 2).currentText == "–" and opened.rows()[0][2] == "Not segmented"


def test_while_the_editor_is_open_training_can_be_pressed(opened):
    made(opened, "a")
    opened.select("a")
    assert not opened.ui.trainButton.enabled
    opened.click("labelButton")
    opened.rig.pump(0.2)
    assert opened.ui.trainButton.enabled


def test_a_folder_to_segment_without_scans_is_said(opened, tmp_path):
    finished(opened, made(opened, "a"))
    opened.widget.conductor.resultsPanel.refreshRuns()
    opened.ui.resultsCollapsibleButton.collapsed = False
    (tmp_path / "dicom").mkdir()
    opened.rig.answer(str(tmp_path / "dicom"))
    opened.rig.answer("Ok", contains="No scans were found")
    opened.click("segmentFolderButton")
    assert not opened.logic.work.controller.active


def test_a_folder_for_results_of_another_computer_is_replaced_and_one_of_a_cloud_needs_consent(labelled, tmp_path):
    labelled.rig.closeScene()
    labelled.widget._parameterNode.outputFolder = "D:\\Studies"
    labelled.widget.setParameterNode(labelled.widget._parameterNode)
    assert labelled.logic.work.folder() == labelled.folder and "D:\\Studies" in labelled.ui.messageLabel.text
    labelled.widget._parameterNode.outputFolder = str(tmp_path / "OneDrive - Clinic" / "results")
    labelled.rig.answer("Cancel", contains="OneDrive copies")
    labelled.widget.conductor.train()
    assert not labelled.logic.work.controller.active and not (tmp_path / "OneDrive - Clinic").exists()


def test_what_the_computer_can_train_with_is_asked_once_the_packages_are_there(opened, monkeypatch):
    conductor, asked = opened.widget.conductor, []
    opened.rig.app.userSettings().setValue("GenSegSlicer/Python", "")
    monkeypatch.setattr(conductor.installing, "missing", lambda: True)
    opened.logic.work.computer.close()
    conductor._knownFor = None
    conductor.settingsChanged()
    assert "not installed yet" in opened.ui.deviceLabel.text
    monkeypatch.setattr(conductor.installing, "missing", lambda: False)
    monkeypatch.setattr(opened.logic.work, "askComputer", lambda: asked.append(1))
    opened.rig.leave()
    opened.widget.enter()
    assert asked


def test_looking_at_a_pair_changes_no_slice_view_for_good_and_shows_one_mask_on_each_picture(opened):
    image, mask = head()
    volume = slicer.util.addVolumeFromArray(image.astype(np.float32), name="a")
    opened.rig.pump(0.2)
    own = opened.draw(volume, mask, {1: "head"})
    assert opened.logic.session.scans.caseId(volume) == "a"
    run = finished(opened, made(opened, "b"))
    run.scan("a", image.astype(np.float32), mask)
    run.pair(image.astype(np.float32), mask)
    told = {"event": "metric", "name": "dice/training", "value": 0.5, "time": 1.0}
    (run.folder / "events.jsonl").write_text("".join(json.dumps(told | {"step": n}) + "\n" for n in (1, 2)))
    manager = slicer.app.layoutManager()
    nodes = {name: manager.sliceWidget(name).mrmlSliceNode() for name in ("Red", "Yellow", "Green")}
    opened.select("a")
    before = {name: node.GetOrientation() for name, node in nodes.items()}
    opened.widget.conductor.openRun(run.folder)
    opened.ui.galleryList.setCurrentRow(0)
    opened.rig.pump(0.3)
    assert nodes["Yellow"].GetOrientation() == "Axial"
    displays = [node.GetDisplayNode() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    seen = [display for display in displays if display.GetVisibility()]
    assert [sum(d.IsDisplayableInView(nodes[view].GetID()) for d in seen) for view in ("Red", "Yellow")] == [1, 1]
    assert not own.GetDisplayNode().GetVisibility()
    opened.ui.lookCollapsibleButton.collapsed = False
    opened.click("showCurvesButton")
    assert {name: node.GetOrientation() for name, node in nodes.items()} == before and redBackground() == "a"
    assert slicer.app.layoutManager().threeDViewCount == 0
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLVolumeNode") if n.GetName().startswith("Synthetic")]
    opened.ui.resultsCollapsibleButton.collapsed = False
    opened.ui.resultsTable.selectRow(0)
    opened.rig.pump()
    opened.click("showButton")
    assert slicer.app.layoutManager().threeDViewCount == 1 and redBackground() == "b"
    opened.select("b")
    opened.select("a")
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() == volume.GetID()
    assert own.GetDisplayNode().GetVisibility() and own.GetDisplayNode().GetNumberOfViewNodeIDs() == 0


def test_after_a_flat_scan_a_volume_is_seen_from_three_sides_again(opened):
    made(opened, "volume")
    flat = slicer.util.addVolumeFromArray(np.arange(320).reshape(1, 20, 16).astype(np.int16), name="flat")
    flat.SetIJKToRASDirections(0, 0, 1, 1, 0, 0, 0, 1, 0)
    opened.rig.pump(0.2)
    manager = slicer.app.layoutManager()
    seen = []
    for name in ("volume", "flat", "volume"):
        opened.select(name)
        seen.append([manager.sliceWidget(view).mrmlSliceNode().GetOrientation() for view in ("Red", "Yellow", "Green")])
    assert seen[0] == seen[2] == ["Axial", "Sagittal", "Coronal"] != seen[1]


def test_curves_stay_while_more_scans_are_segmented(opened):
    run = finished(opened, made(opened, "a"))
    told = {"event": "metric", "name": "dice/training", "step": 1, "value": 0.5, "time": 1.0}
    (run.folder / "events.jsonl").write_text("".join(json.dumps(told | {"step": n}) + "\n" for n in (1, 2)))
    opened.widget.conductor.openRun(run.folder)
    charts = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode")
    opened.logic.work.forget()
    work(opened, 60)
    opened.rig.pump(3)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode") == charts > 0
    assert opened.ui.curvesComboBox.count == charts
    opened.logic.work.controller.forceStop()


def test_the_log_stands_still_while_somebody_reads_further_up(opened):
    ui = opened.ui
    ui.logCollapsibleButton.collapsed = False
    opened.rig.pump(0.2)
    work(opened, 60)
    log, bar = opened.logic.work.controller.progress.log, ui.logTextEdit.verticalScrollBar()
    log.extend(f"line {n}" for n in range(200))
    opened.widget.conductor.trainPanel.showLog()
    assert bar.value == bar.maximum > 0
    bar.value = 3
    log.append("another")
    opened.widget.conductor.trainPanel.showLog()
    assert bar.value == 3 and "another" not in ui.logTextEdit.plainText
    bar.value = bar.maximum
    opened.widget.conductor.trainPanel.showLog()
    assert "another" in ui.logTextEdit.plainText and bar.value == bar.maximum
    opened.logic.work.controller.forceStop()


def test_of_scans_too_large_to_be_loaded_at_once_each_comes_when_it_is_shown(opened, data, monkeypatch):
    monkeypatch.setattr(sys.modules[type(opened.logic.work).__module__], "AT_ONCE", 1)
    run, batch = batchOf(opened, data, 2)
    opened.widget.conductor.openRun(batch, run.folder)
    opened.widget.conductor.bring(opened.logic.work.bringAll(batch, run.folder))
    opened.wait(lambda: opened.widget.conductor._bringing is None)
    assert "too large" in opened.ui.messageLabel.text
    assert len(opened.rows()) == 1, "the one that deserves the first look"
    opened.ui.resultsCollapsibleButton.collapsed = False
    opened.ui.resultsTable.selectRow(1)
    opened.rig.pump()
    assert not opened.ui.acceptButton.enabled
    opened.click("showButton")
    assert len(opened.rows()) == 2 and opened.ui.acceptButton.enabled


@pytest.mark.slow
def test_from_the_button_to_segmentations_over_a_stop_and_a_restart(labelled):
    """The whole way: train, stop, go on after the scene was saved and loaded, masks, accept, correct, segment more."""
    opened = labelled
    opened.trainFor(100)
    opened.click("trainButton")
    opened.wait(lambda: opened.ui.galleryList.count > 0)
    opened.click("trainButton")
    assert opened.ui.trainButton.text == "Stop at once"
    opened.waitForEnd()
    run = opened.logic.work.controller.runFolder
    assert opened.logic.work.controller.state == "stopped" and (run / "checkpoints" / "last.safetensors").exists()

    saved = opened.rig.saveScene(opened.folder / "scene")
    opened.rig.closeScene()
    opened.rig.openScene(saved)
    opened.rig.pump(0.3)
    assert opened.widget._parameterNode.currentRun == str(run)
    assert [row[1] for row in opened.rows()] == ["Labeled"] * 3 + ["To segment"] * 2
    assert opened.ui.galleryList.count > 0 and opened.ui.curvesComboBox.count > 0
    opened.click("resumeButton")
    opened.waitForEnd()
    assert opened.logic.work.controller.state == "done", opened.logic.work.controller.explanation
    opened.wait(lambda: opened.widget.conductor._bringing is None)

    index = json.loads((run / "predictions" / "index.json").read_text())["cases"]
    assert opened.ui.resultsTable.rowCount == len(index) == 2
    references = dict(zip([row[0] for row in opened.rows()], (labels for _f, labels in opened.scans[:5]), strict=True))
    for case in index:
        volume, segmentation = opened.logic.session.predictionOf(run, case["case"])
        found = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        for value in (1, 2):
            segmentId = segmentation.GetSegmentation().GetNthSegmentID(value - 1)
            found[slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segmentId, volume) > 0] = value
        wanted = references[volume.GetName()]
        dice = [2 * ((found == v) & (wanted == v)).sum() / ((found == v).sum() + (wanted == v).sum()) for v in (1, 2)]
        assert np.mean(dice) > 0.5, dice  # after about a hundred steps

    visible = [n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if n.GetDisplayNode().GetVisibility()]
    assert len(visible) == 1 and visible[0].GetSegmentation().ContainsRepresentation("Closed surface")
    opened.click("showCurvesButton")
    opened.ui.galleryList.setCurrentRow(0)
    opened.rig.pump()
    assert opened.ui.pairLabel.text and slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1].GetName()
    opened.click("excludeButton")
    assert json.loads((run / "excluded.json").read_text())["pairs"] and "back" in opened.ui.excludeButton.text
    opened.rig.leave()
    opened.widget.enter()
    assert [row[1] for row in opened.rows()].count("Labeled") == 3, "the pair is no scan"

    opened.ui.resultsTable.selectRow(0)
    opened.rig.pump()
    opened.click("acceptButton")
    opened.rig.pump(0.2)
    assert [row[1] for row in opened.rows()].count("Labeled") == 4
    opened.ui.resultsTable.selectRow(1)
    opened.rig.pump()
    opened.click("correctButton")
    assert opened.ui.editorFrame.visible
    opened.click("doneButton")
    opened.rig.pump(0.2)
    assert [row[1] for row in opened.rows()].count("Labeled") == 5

    opened.rig.answer([str(file) for file, _labels in opened.scans[5:]])
    opened.click("segmentFilesButton")
    opened.waitForEnd()
    assert opened.logic.work.controller.state == "done", opened.logic.work.controller.explanation
    opened.wait(lambda: opened.widget.conductor._bringing is None)
    opened.rig.pump(0.2)
    assert len(opened.rows()) == 7 and opened.rows()[-1][2].startswith("Segmented by the model")
    assert opened.ui.resultsTable.rowCount == 2
    opened.ui.resultsTable.selectRow(1)
    opened.rig.pump()
    assert opened.ui.acceptButton.enabled

    assert opened.ui.runComboBox.count == 2 and opened.ui.runComboBox.currentIndex == 1
    opened.rig.select(opened.ui.runComboBox, opened.ui.runComboBox.itemText(0))
    opened.rig.answer("Yes", contains=str(run))
    opened.click("removeRunButton")
    assert not run.exists() and not (opened.folder / "studies" / run.name).exists()
