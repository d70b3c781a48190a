"""The rig itself: what PythonQt and Slicer refuse it refuses. Habits: guides, slicer.md section 6."""

import pytest
from pythonqt.SmallModule import MODULE, UI

pytest_plugins = ("pythonqt.fixture",)
np = pytest.importorskip("numpy")
slicer = pytest.importorskip("slicer")


@pytest.fixture
def module(tmp_path):
    """A small module's folder."""
    folder = tmp_path / "Small"
    (folder / "Resources" / "UI").mkdir(parents=True)
    (folder / "Small.py").write_text(MODULE, encoding="utf-8")
    (folder / "Resources" / "UI" / "Small.ui").write_text(UI, encoding="utf-8")
    return folder


def scan(rig, name="scan"):
    return rig.mrml.volume(np.zeros((3, 4, 5), np.int16), name)


# --- attributes --------------------------------------------------------------------------------------------------


def test_properties_are_attributes_and_coerce(slicerRig):
    import qt

    button, spin = qt.QPushButton("Go"), qt.QSpinBox()
    assert button.text == "Go" and button.enabled is True and button.isEnabled()
    with pytest.raises(TypeError):
        button.text()
    spin.value = 3.7
    button.enabled = None
    assert spin.value == 3 and button.enabled is False
    for value, shown in ((3, "3"), (None, "None")):
        button.text = value
        assert button.text == shown
    button.name = "go"
    assert button.objectName == "go"
    with pytest.raises(AttributeError):
        spin.value = "many"


def test_unknown_names_and_slots_cannot_be_set(slicerRig):
    import qt

    button = qt.QPushButton()
    for name in ("txt", "setText", "clicked"):
        with pytest.raises(AttributeError):
            setattr(button, name, 3)
    with pytest.raises(AttributeError, match="has no attribute"):
        _ = button.txt
    with pytest.raises(AttributeError):
        slicer.qMRMLNodeComboBox().currentNode = None

    class Mine(qt.QWidget):
        def __init__(self):
            super().__init__()
            self.anything = 3

    assert Mine().anything == 3


@pytest.mark.parametrize(
    "call",
    (
        lambda qt: qt.QPushButton(text="Go"),
        lambda qt: qt.QLabel().setText(),
        lambda qt: qt.QLabel().setEnabled(enabled=True),
        lambda qt: qt.QPushButton().setIcon(qt.QPixmap()),
        lambda qt: qt.QTableWidget(2, 2).setItem(0, 0, "text"),
        lambda qt: qt.QTimer.singleShot(5, None),
        lambda qt: qt.QWidget().addAction("text", print),
    ),
)
def test_calls_with_wrong_arguments_raise_value_error(slicerRig, call):
    import qt

    with pytest.raises(ValueError):
        call(qt)


def test_numpy_numbers_and_paths_are_taken_where_slicer_takes_them(slicerRig, tmp_path):
    import qt

    table = qt.QTableWidget(np.int64(2), np.uint8(3))
    assert (table.rowCount, table.columnCount) == (2, 3)
    label = qt.QLabel()
    label.setText(tmp_path)
    assert label.text == str(tmp_path)


def test_what_only_qt_6_or_pyside_has_does_not_exist(slicerRig):
    import qt

    for name in ("QPermission", "Signal", "Slot", "Property", "QtCore"):
        with pytest.raises(AttributeError):
            getattr(qt, name)
    for owner, name in (
        (qt.QCheckBox(), "checkStateChanged"),
        (qt.QFormLayout(), "setRowVisible"),
        (qt.QSize(), "toTuple"),
    ):
        with pytest.raises(AttributeError):
            getattr(owner, name)
    with pytest.raises(AttributeError):
        _ = qt.QMessageBox.StandardButton.Yes


def test_enums_are_numbers_and_lists_are_tuples(slicerRig):
    import qt

    assert qt.Qt.AlignCenter == 132 and isinstance(qt.Qt.AlignCenter, int)
    assert type(qt.QMessageBox.Yes | qt.QMessageBox.No) is int
    parent = qt.QWidget()
    child = qt.QLabel("x", parent)
    child.name = "inside"
    assert parent.children() == (child,) and parent.findChildren(qt.QLabel) == (child,)
    assert parent.inside == child and parent.findChild("QLabel", "inside") == child
    assert not isinstance(child, qt.QFrame) and child.inherits("QFrame") and child.className() == "QLabel"


def test_a_deleted_object_is_false_and_cannot_be_read(slicerRig):
    import qt

    parent = qt.QWidget()
    child = qt.QLabel("x", parent)
    parent.deleteLater()
    slicerRig.pump()
    assert not child and not parent
    with pytest.raises(ValueError):
        _ = child.text


def test_an_object_without_parent_and_holder_goes(slicerRig):
    import qt

    hits = []

    def start():
        timer = qt.QTimer()
        timer.connect("timeout()", lambda: hits.append(1))
        timer.start(1)

    start()
    slicerRig.pump(0.05)
    assert not hits


# --- signals -----------------------------------------------------------------------------------------------------


def test_the_signature_decides_the_arguments(slicerRig):
    import qt

    button, hits = qt.QPushButton(), []
    assert button.connect("clicked()", lambda *arguments: hits.append(arguments)) is True
    assert button.connect("clicked(bool)", lambda *arguments: hits.append(arguments)) is True
    assert button.connect("clicked(bool)", lambda: hits.append("fewer")) is True
    assert button.clicked.connect(lambda checked: hits.append(checked)) is True
    slicerRig.click(button)
    assert hits == [(), (False,), "fewer", False]
    assert button.disconnect("clicked()") is True and len(hits) == 4
    slicerRig.click(button)
    assert len(hits) == 7


def test_an_unknown_signal_gives_false_and_is_noted(slicerRig):
    import qt

    assert qt.QPushButton().connect("pushed()", print) is False
    slicerRig.takeProblem("pushed()")


def test_a_slot_s_exception_is_noted_and_work_goes_on(slicerRig):
    import qt

    button, hits = qt.QPushButton(), []
    button.connect("clicked()", lambda: 1 / 0)
    button.connect("clicked()", lambda: hits.append(1))
    slicerRig.click(button)
    assert hits == [1]
    slicerRig.takeProblem("ZeroDivisionError")


def test_a_user_cannot_click_what_is_disabled_or_hidden(slicerRig):
    import ctk
    import qt

    box = ctk.ctkCollapsibleButton()
    with pytest.raises(ValueError):  # CTK's wrapping knows no constructor with a text
        ctk.ctkCollapsibleButton("More")
    button = qt.QPushButton("Go")
    qt.QVBoxLayout(box).addWidget(button)
    box.collapsed = True
    with pytest.raises(AssertionError, match="hidden"):
        slicerRig.click(button)
    box.collapsed = False
    slicerRig.click(button)
    button.enabled = False
    with pytest.raises(AssertionError, match="disabled"):
        slicerRig.click(button)


# --- qMRML widgets -----------------------------------------------------------------------------------------------


def test_a_node_combo_box_follows_the_scene(slicerRig):
    first, box, hits = scan(slicerRig, "first"), slicer.qMRMLNodeComboBox(), []
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    assert box.currentNode() is None and box.enabled is False, "without a scene it holds nothing"
    box.setMRMLScene(slicer.mrmlScene)
    assert box.connect("currentNodeChanged(vtkMRMLNode*)", hits.append)
    second = scan(slicerRig, "second")
    assert box.currentNode() is first and box.nodeCount() == 2
    box.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(second)
    assert hits == [second, first]
    with pytest.raises(TypeError):
        box.setCurrentNode(slicer.mrmlScene)
    slicerRig.closeScene()
    assert box.currentNode() is None


def test_the_segment_editor_needs_its_own_node_first(slicerRig):
    volume = scan(slicerRig)
    segmentation = slicerRig.mrml.segmentation({"liver": np.ones((3, 4, 5), bool)}, volume)
    editor = slicer.qMRMLSegmentEditorWidget()
    editor.setMRMLScene(slicer.mrmlScene)
    editor.setSegmentationNode(segmentation)
    slicerRig.takeProblem("Invalid segment editor parameter set node")
    editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    editor.setSegmentationNode(segmentation)
    assert editor.sourceVolumeNode() is volume and editor.currentSegmentID() == "id 0 of liver"


def test_the_layout_is_the_scene_s_own(slicerRig):
    manager, hits = slicer.app.layoutManager(), []
    manager.connect("layoutChanged(int)", hits.append)
    assert manager.sliceViewNames() == ("Red", "Green", "Yellow") and manager.plotViewCount == 0
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)
    assert manager.plotWidget(0).mrmlPlotViewNode().IsA("vtkMRMLPlotViewNode") and len(hits) == 1
    volume = scan(slicerRig)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    red = manager.sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
    slicerRig.removeMainWindow()
    assert slicer.app.layoutManager() is None and slicer.util.mainWindow() is None


def greenPixels(path) -> int:
    """How many pixels of a picture are green."""
    from PySide6.QtGui import QImage

    picture = QImage(str(path))
    colors = [picture.pixelColor(x, y) for x in range(picture.width()) for y in range(picture.height())]
    return sum(color.green() > color.red() + 20 and color.green() > color.blue() + 20 for color in colors)


def test_pictures_of_views_show_what_is_in_the_scene(slicerRig, tmp_path):
    inside = np.zeros((20, 20, 20), bool)
    inside[5:15, 5:15, 5:15] = True
    volume = slicerRig.mrml.volume(np.zeros((20, 20, 20), np.int16))
    slicer.util.setSliceViewerLayers(background=volume)
    assert greenPixels(slicerRig.picture("Red", tmp_path / "empty.png", (60, 60), fit=True)) == 0
    segmentation = slicerRig.mrml.segmentation({"box": inside}, volume)
    segmentation.CreateClosedSurfaceRepresentation()
    seen = greenPixels(slicerRig.picture("Red", tmp_path / "slice.png", (60, 60), fit=True))
    assert 600 < seen < 1200, "a quarter of the field"
    assert greenPixels(slicerRig.picture("3D", tmp_path / "surface.png", (60, 60))) > 100


# --- the module --------------------------------------------------------------------------------------------------


def test_a_module_is_driven_as_a_user_does(slicerRig, module, tmp_path):
    widget = slicerRig.openModule(module)
    assert widget.log == ["enter"] and slicer.modules.sampleDataSources["Small"][0].sampleName == "one"
    assert widget.ui.minutesSpinBox.value == 30 and widget.ui.minutesSpinBox.maximum == 600
    slicerRig.answer("Cancel", contains="Really go?")
    slicerRig.click(widget.ui.goButton)
    slicerRig.type(widget.ui.minutesSpinBox, "45")
    slicerRig.select(widget.ui.scanComboBox, scan(slicerRig, "mine").GetName())
    slicerRig.select(widget.ui.speedComboBox, "SLOW")
    slicerRig.click(widget.ui.carefulCheckBox)
    slicerRig.type(widget.ui.folderEdit, str(tmp_path))
    slicerRig.answer("Ok")
    slicerRig.click(widget.ui.goButton)
    assert widget.log == ["enter", "refused", "went 45"]
    assert widget.parameters.scan.GetName() == "mine" and widget.parameters.speed.name == "SLOW"
    assert widget.parameters.folder == tmp_path and widget.parameters.careful is False
    with pytest.raises(ValueError, match="range"):
        widget.parameters.minutes = 601
    assert slicerRig.screenshot(tmp_path / "panel.png").stat().st_size > 1000

    saved = slicerRig.saveScene(tmp_path / "scene")
    slicerRig.closeScene()
    assert widget.log[-1] == "close"
    slicerRig.openScene(saved)
    widget.connectNode()
    assert widget.ui.minutesSpinBox.value == 45 and widget.ui.speedComboBox.currentText == "SLOW"
    assert widget.ui.scanComboBox.currentNode().GetName() == "mine"

    again = slicerRig.reload("Small")
    assert again is not widget and widget.log[-1] == "cleanup" and again.ui.minutesSpinBox.value == 45
    slicerRig.leave()
    slicerRig.quit()
    assert again.log == ["exit", "quit", "cleanup"]


def test_an_error_is_shown_and_fails_the_test_unless_it_is_expected(slicerRig, module):
    widget = slicerRig.openModule(module)
    slicerRig.answer("Ok")
    slicerRig.answer("Ok", contains="It failed.\n\nno scan")
    slicerRig.click(widget.ui.goButton)
    slicerRig.takeProblem("ValueError: no scan")


def test_problems_are_not_lost(monkeypatch, module):
    from pythonqt.Rig import Rig

    rig = Rig(monkeypatch)
    widget = rig.openModule(module)
    rig.click(widget.ui.goButton)
    assert widget.log[-1] == "refused"
    rig.answer("Ok")
    unexpected, unused = rig.close()
    assert "unexpected dialog" in unexpected and "no dialog asked" in unused


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    (
        ("ctkCollapsibleButton", "ctkCollapsibleButon", "unknown"),
        ('name="noneEnabled"', 'name="nonEnabled"', "no property"),
        ('name="minutesSpinBox"', 'name="goButton"', "given 2 times"),
        ("<slot>setMRMLScene(vtkMRMLScene*)</slot>", "<slot>setScene(vtkMRMLScene*)</slot>", "does not exist"),
        ("ctkPathLineEdit::Dirs", "ctkPathLineEdit::Folders", "no enum value"),
    ),
)
def test_mistakes_in_the_ui_file_are_found(slicerRig, module, right, wrong, said):
    path = module / "Resources" / "UI" / "Small.ui"
    path.write_text(path.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    found = []
    try:
        slicer.util.loadUI(str(path))
    except RuntimeError as error:
        found.append(str(error))
    while slicerRig.problems:
        found.append(slicerRig.takeProblem(""))
    assert said in "\n".join(found)
