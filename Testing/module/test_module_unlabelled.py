"""The scans to segment: learned from unless one check box is off, from the window to the command and back."""

import json
import sys

import numpy as np
import pytest
import slicer
from opened import Opened
from pythonqt.fixture import slicerRig  # noqa: F401

OFF = "--no-learn-unlabelled"
UNLIKE = (
    "scan{number:02} does not look like the labelled scans (extent 3.1 x theirs; grey values distributed "
    "differently), so nothing is learned from it; it is segmented all the same."
)


@pytest.fixture
def opened(slicerRig, tmp_path):  # noqa: F811
    """The module with one labeled scan and one to segment."""
    opened = Opened(slicerRig, tmp_path / "results")
    for seed, name in enumerate(("labeled", "waiting")):
        voxels = np.random.default_rng(seed).integers(0, 999, (10, 20, 16)).astype(np.int16)
        volume = slicer.util.addVolumeFromArray(voxels, name=name)
    labels = np.zeros((10, 20, 16), np.uint8)
    labels[3:6, 5:9, 5:9] = 1
    opened.draw(slicer.util.getNode("labeled"), labels, {1: "head"})
    slicerRig.pump(0.3)
    assert volume.GetName() == "waiting" and opened.rows()[1][1] == "To segment"
    return opened


def pressed(opened) -> list[str]:
    """Press the button → the command it starts, which is ended at once."""
    opened.click("trainButton")
    controller = opened.logic.work.controller
    command = controller._process.command
    controller.forceStop()
    opened.widget.conductor.unlock()
    return command


def warning(message: str, code: str = "unlike_scan", remedy: str = "") -> dict:
    return {"event": "warning", "code": code, "message": message, "remedy": remedy}


def told(opened, *events: dict) -> list[str]:
    """Lines of the window's message after a run has told this; the run is still at work."""
    lines = "\n".join(json.dumps(event) for event in events)
    code = f"import time\nprint({lines!r}, flush=True)\ntime.sleep(60)"
    opened.logic.work.controller.start([sys.executable, "-c", code], None)
    opened.widget.conductor._begun()
    opened.wait(lambda: len(opened.logic.work.controller.progress.warnings) == len(events), 20)
    opened.rig.pump(0.6)
    assert opened.ui.messageLabel.visible
    return opened.ui.messageLabel.text.splitlines()


def test_scans_to_segment_are_learned_from_unless_the_one_check_box_is_off(opened):
    box = opened.ui.unlabeledCheckBox
    assert box.checked and box.text == "Learn from the scans to segment, too"
    assert OFF not in pressed(opened)
    opened.click("unlabeledCheckBox")
    assert not opened.widget._parameterNode.useUnlabeled
    command = pressed(opened)
    assert command.count(OFF) == 1 and command[-2:] == ["--events", "--watch-stdin"]


def test_with_the_check_box_off_they_are_scans_without_labels_all_the_same(opened):
    """The program is told not to learn from them: it does not take them for test scans."""
    opened.click("unlabeledCheckBox")
    opened.click("trainButton")
    (study,) = (opened.folder / "studies").glob("*/dataset.json")
    content = json.loads(study.read_text(encoding="utf-8"))
    opened.logic.work.controller.forceStop()
    assert [len(content[split]) for split in ("training", "unlabeled", "test")] == [1, 1, 0]


def test_the_check_box_is_seen_without_unfolding_anything_and_locked_while_a_run_is_on(opened):
    ui = opened.ui
    assert ui.advancedCollapsibleButton.collapsed
    assert ui.unlabeledCheckBox.visible and ui.unlabeledCheckBox.enabled
    opened.logic.work.controller.start(["sleep", "60"], None)
    opened.widget.conductor._begun()
    assert not ui.unlabeledCheckBox.enabled and not ui.budgetComboBox.enabled
    opened.logic.work.controller.forceStop()
    opened.widget.conductor.unlock()
    assert ui.unlabeledCheckBox.enabled and ui.budgetComboBox.enabled


def test_what_was_chosen_comes_back_with_the_scene_and_a_new_scene_learns_from_all(opened):
    opened.click("unlabeledCheckBox")
    opened.rig.select(opened.ui.methodComboBox, "No generator, scans to segment teach (VerSemi)")
    saved = opened.rig.saveScene(opened.folder / "scene")
    opened.rig.closeScene()
    opened.rig.pump(0.3)
    assert opened.ui.unlabeledCheckBox.checked and opened.ui.methodComboBox.currentData == "auto"
    opened.rig.openScene(saved)
    opened.rig.pump(0.3)
    assert not opened.ui.unlabeledCheckBox.checked and not opened.widget._parameterNode.useUnlabeled
    assert opened.ui.methodComboBox.currentData == opened.widget._parameterNode.method == "versemi"


@pytest.mark.parametrize("method", ["genseg", "separate", "supervised"])
def test_a_scene_of_before_keeps_its_method(opened, method):
    opened.widget._parameterNode.parameterNode.SetParameter("method", method)
    saved = opened.rig.saveScene(opened.folder / "scene")
    opened.rig.closeScene()
    opened.rig.openScene(saved)
    opened.rig.pump(0.3)
    assert opened.ui.methodComboBox.currentData == method
    command = pressed(opened)
    assert command[command.index("--method") + 1] == method


def test_the_method_is_left_to_the_program_unless_one_is_chosen_and_each_of_the_programs_can_be(opened, backend):
    command = pressed(opened)
    assert command[command.index("--method") + 1] == "auto"
    code = "import typing; from genseg.settings import Method; print(*typing.get_args(Method))"
    combo = opened.ui.methodComboBox
    assert [combo.itemData(i) for i in range(combo.count)] == ["auto", *backend(code).split()]
    assert len({combo.itemText(i) for i in range(combo.count)}) == combo.count


def test_a_generator_can_be_chosen_only_with_a_method_that_has_one_as_the_program_says(opened, backend):
    combo, methods = opened.ui.generatorComboBox, opened.ui.methodComboBox
    opened.rig.select(combo, "Variational autoencoder")
    generating = backend("from genseg.settings import GENERATING; print(*GENERATING)").split()
    for index in range(methods.count):
        opened.rig.select(methods, methods.itemText(index))
        has = methods.currentData in ["auto", *generating]
        assert combo.enabled == has and ("--generator" in pressed(opened)) == has, methods.currentData
        assert combo.enabled == has and combo.currentData == "vae"
    opened.widget._parameterNode.method = "genseg"
    opened.rig.pump(0.1)
    assert combo.enabled


def test_a_network_of_ones_own_is_typed_asked_for_and_comes_back_with_the_scene(opened):
    combo, own = opened.ui.segmenterComboBox, "uNet_lab.nets:make"
    opened.rig.type(combo.lineEdit(), own)
    opened.ui.minutesSpinBox.value = 33  # while it is being typed
    opened.rig.pump(0.1)
    assert combo.currentText == own
    opened.rig.pump(0.8)
    assert combo.currentText == opened.widget._parameterNode.segmenter == own and combo.count == 7
    command = pressed(opened)
    assert command[command.index("--segmenter") + 1] == own
    saved = opened.rig.saveScene(opened.folder / "scene")
    opened.rig.closeScene()
    opened.rig.pump(0.3)
    assert combo.currentData == "auto"
    opened.rig.openScene(saved)
    opened.rig.pump(0.3)
    assert combo.currentText == opened.widget._parameterNode.segmenter == own
    opened.rig.type(combo.lineEdit(), "SegResNet")
    command = pressed(opened)  # at once
    assert command[command.index("--segmenter") + 1] == "segresnet" and combo.currentData == "segresnet"


def test_each_network_of_the_program_can_be_chosen_is_asked_for_and_comes_back_with_the_scene(opened, backend):
    names = "import typing; from genseg.settings import SEGMENTERS, GeneratorName as G; "
    for field, known, (words, chosen) in (
        ("segmenter", "print('auto', *SEGMENTERS)", ("Residual U-Net", "unet")),
        ("generator", "print(*typing.get_args(G))", ("pix2pix with searched layers: slow in 3D", "pix2pix")),
    ):
        combo = getattr(opened.ui, f"{field}ComboBox")
        choices = [combo.itemData(i) for i in range(combo.count)]
        assert choices == backend(names + known).split() and combo.currentData == choices[0]
        assert len({combo.itemText(i) for i in range(combo.count)}) == combo.count
        opened.rig.select(combo, words)
        assert combo.currentData == chosen
    command = pressed(opened)
    assert command[command.index("--segmenter") + 1] == "unet"
    assert command[command.index("--generator") + 1] == "pix2pix"
    saved = opened.rig.saveScene(opened.folder / "scene")
    opened.rig.closeScene()
    opened.rig.pump(0.3)
    assert opened.ui.segmenterComboBox.currentData == "auto" and opened.ui.generatorComboBox.currentData == "spade"
    opened.rig.openScene(saved)
    opened.rig.pump(0.3)
    assert opened.ui.segmenterComboBox.currentData == opened.widget._parameterNode.segmenter == "unet"
    assert opened.ui.generatorComboBox.currentData == opened.widget._parameterNode.generator == "pix2pix"


def test_the_tool_tip_and_the_help_say_what_it_means_and_what_happens_in_any_case(opened):
    tip, help = opened.ui.unlabeledCheckBox.toolTip, slicer.modules.gensegslicer.helpText
    for words in ("without labels", "how they look", "another kind", "never seen", "segmented in any case"):
        assert words in tip.lower() and words in help, words
    assert tip.startswith("<p>"), "Qt breaks the lines of rich text alone"
    assert opened.ui.unlabeledCheckBox.text in help


def test_a_warning_of_any_kind_reaches_the_window_while_the_run_is_on(opened):
    lines = told(opened, warning(UNLIKE.format(number=7)), warning("Something.", "of_a_new_kind", "Do something."))
    assert lines == [UNLIKE.format(number=7), "Something. Do something."]
    assert f"Warning: {UNLIKE.format(number=7)}" in opened.logic.work.controller.progress.log
    opened.logic.work.controller.forceStop()


def test_many_scans_of_another_kind_do_not_fill_the_window_and_the_log_names_each(opened):
    events = [warning(UNLIKE.format(number=number)) for number in range(40)]
    lines = told(opened, *events, warning("Something else.", "study_note"))
    assert len(lines) == 7 and "scan04" in lines[4] and lines[5] == "Something else."
    assert lines[6] == "The log holds 35 more notes like these."
    assert sum("does not look" in line for line in opened.logic.work.controller.progress.log) == 40
    opened.logic.work.controller.forceStop()
