"""Section 1: which scans there are, what each is for, and labeling them."""

from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from GenSegSlicerLib.Gui.LabelingEditor import LabelingEditor
from GenSegSlicerLib.Gui.Pictures import show
from GenSegSlicerLib.Gui.Views import showScan
from GenSegSlicerLib.Scans import GALLERY, Role, isPrediction

NAME, ROLE, MASK, STATE = range(4)
ROW_HEIGHT = 26  # pixels
SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class ScansPanel(VTKObservationMixin):
    """The table of scans follows the scene; what the user picks in it is written into the scene."""

    def __init__(self, ui, logic, changed):
        """`changed` is called without arguments after the scans or their roles changed."""
        VTKObservationMixin.__init__(self)
        self.ui, self.logic, self.changed = ui, logic, changed
        self.editor = LabelingEditor(ui, self._labelingEnded)
        self._rows: list = []  # scans, in the order of the table
        self._filling = False
        # Many nodes may come at once; the table is filled when they are all there.
        self._later = qt.QTimer()
        self._later.setSingleShot(True)
        self._later.setInterval(50)
        self._later.connect("timeout()", self.refresh)
        self._setUpTable()
        show(ui.suggestionLabel, "")
        ui.addFilesButton.connect("clicked()", self.onAddFiles)
        ui.addFolderButton.connect("clicked()", self.onAddFolder)
        ui.labelButton.connect("clicked()", self.onLabel)
        ui.suggestButton.connect("clicked()", self.onSuggest)
        ui.scansTable.connect("itemSelectionChanged()", self.onSelected)
        ui.scansTable.connect("itemClicked(QTableWidgetItem*)", lambda item: self.onSelected())  # the same once more
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.NodeAddedEvent, self._onNode)
        self.addObserver(slicer.mrmlScene, slicer.vtkMRMLScene.NodeRemovedEvent, self._onNodeRemoved)
        for event in (slicer.vtkMRMLScene.EndImportEvent, slicer.vtkMRMLScene.EndCloseEvent):
            self.addObserver(slicer.mrmlScene, event, self._onScene)

    def cleanup(self) -> None:
        self._later.stop()
        self.removeObservers()
        self.editor.cleanup()

    # --- the table ---

    def _setUpTable(self) -> None:
        table = self.ui.scansTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([_("Scan"), _("Use"), _("Segmentation"), _("State")])
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        for column in (NAME, STATE):
            table.horizontalHeader().setSectionResizeMode(column, qt.QHeaderView.Stretch)
        table.setColumnWidth(MASK, 120)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNode(self, caller, event, node) -> None:
        if node is not None and (node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLSegmentationNode")):
            self._later.start()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, caller, event, node) -> None:
        if node is not None and self.editor.edits(node):
            self.editor.close()
        self._onNode(caller, event, node)

    def _onScene(self, caller, event) -> None:
        self._later.start()

    def refresh(self) -> None:
        """Fill the table from the scene; the selected scan stays selected."""
        if slicer.mrmlScene.IsBatchProcessing() or self._isChoosing():
            self._later.start()
            return
        selected = self.selectedScan()
        selectedId = selected.volumeNode.GetID() if selected is not None else None
        self._rows = self.logic.session.scans.scans()
        self._filling = True
        try:
            self.ui.scansTable.setRowCount(len(self._rows))
            masks = _masks()
            for row, scan in enumerate(self._rows):
                self._fillRow(row, scan, masks)
                if scan.volumeNode.GetID() == selectedId:
                    self.ui.scansTable.selectRow(row)
        finally:
            self._filling = False
        self.ui.scansTable.resizeColumnToContents(ROLE)
        self._tell()
        self.changed()

    def _isChoosing(self) -> bool:
        """Whether a list of the table is unfolded, which must not vanish under the mouse."""
        table = self.ui.scansTable
        boxes = (table.cellWidget(row, column) for row in range(table.rowCount) for column in (ROLE, MASK))
        return any(box is not None and box.view().visible for box in boxes)

    def _fillRow(self, row: int, scan, masks: list[tuple]) -> None:
        table = self.ui.scansTable
        for column, text in ((NAME, scan.name), (STATE, scan.state)):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(text)
            table.setItem(row, column, item)
        own = scan.segmentationNode.GetID() if scan.segmentationNode is not None else ""
        for column, choices, chosen in ((ROLE, _roleTexts(), scan.role.value), (MASK, masks, own)):
            combo = table.cellWidget(row, column)
            if combo is None:
                combo = qt.QComboBox()
                combo.connect("activated(int)", lambda index, at=(row, column), box=combo: self._onChosen(*at, box))
                table.setCellWidget(row, column, combo)
            _offer(combo, choices, chosen)

    def _onChosen(self, row: int, column: int, combo) -> None:
        """A use or a segmentation was chosen for the scan of this row."""
        if row >= len(self._rows):
            return
        scans, volumeNode = self.logic.session.scans, self._rows[row].volumeNode
        if column == ROLE:
            scans.setRole(volumeNode, combo.currentData)
        else:
            scans.setSegmentation(volumeNode, slicer.mrmlScene.GetNodeByID(combo.currentData or "none"))
        self._later.start()

    def _tell(self) -> None:
        ui, scan = self.ui, self.selectedScan()
        ui.labelButton.enabled = scan is not None
        ui.suggestButton.enabled = any(other.role == Role.SEGMENT for other in self._rows)
        hint = _(
            "There are no scans yet. Add files or a folder, load DICOM scans in the DICOM module, or try the samples "
            "of the Sample Data module."
        )
        show(ui.scansHintLabel, "" if self._rows else hint)
        names = self.logic.session.structureNames()
        text = _("Structures: {names}.").format(names=", ".join(names)) if names else ""
        if self._rows and not any(other.drawn for other in self._rows):
            text = _("No scan is labeled yet. Select one and press “Label this scan”.")
        show(ui.structuresLabel, text)

    # --- what the user does ---

    def selectedScan(self):
        """The scan of the selected row, or None."""
        row = self.ui.scansTable.currentRow()
        return self._rows[row] if 0 <= row < len(self._rows) else None

    def select(self, volumeNode) -> None:
        for row, scan in enumerate(self._rows):
            if scan.volumeNode is volumeNode:
                self.ui.scansTable.selectRow(row)

    def onSelected(self) -> None:
        scan = self.selectedScan()
        self.ui.labelButton.enabled = scan is not None
        if self._filling or scan is None:
            return
        show(self.ui.suggestionLabel, "")
        if self.editor.isOpen and self.editor.volumeNode is not scan.volumeNode:
            self.label(scan.volumeNode)  # never draw on one scan while another one is seen
        else:
            showScan(scan.volumeNode, scan.segmentationNode)

    def onAddFiles(self) -> None:
        self._add(chooseScans(_("Add scans")))

    def onAddFolder(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Add a folder of scans"))
        if not folder:
            return
        self._add(scansIn(Path(folder)) or tellNoScans(Path(folder)))

    def _add(self, paths: list[Path]) -> None:
        failed = self._load(paths)
        if failed:
            slicer.util.warningDisplay(
                _("These files could not be read as scans: {names}").format(names=", ".join(failed))
            )
        self.refresh()

    def _load(self, paths: list[Path]) -> list[str]:
        """→ names of the files that are no scans. Of many files with a window that can be called off."""
        if len(paths) < 2:
            return [path.name for path in paths if self.logic.loadScan(path) is None]
        failed, window = [], slicer.util.createProgressDialog(windowTitle=_("Add scans"), maximum=len(paths))
        try:
            for number, path in enumerate(paths):
                window.labelText, window.value = path.name, number
                slicer.app.processEvents()
                if window.wasCanceled:
                    break
                if self.logic.loadScan(path) is None:
                    failed.append(path.name)
        finally:
            window.close()
        return failed

    def onLabel(self) -> None:
        scan = self.selectedScan()
        if scan is not None:
            self.label(scan.volumeNode)

    def label(self, volumeNode) -> None:
        """Open the editor on this scan with the study's own structures."""
        with slicer.util.tryWithErrorDisplay(_("The scan cannot be labeled."), waitCursor=True):
            self._offerPrediction(volumeNode)
            segmentation = self.logic.session.segmentationToLabel(volumeNode)
            showScan(volumeNode, segmentation)
            self.editor.open(volumeNode, segmentation)

    def _offerPrediction(self, volumeNode) -> None:
        """Correcting what the model drew is quicker than drawing."""
        session = self.logic.session
        waiting = session.scans.predictionsOf(volumeNode)
        question = _("Start from the mask that the model drew for this scan?")
        if waiting and not session.scans.scan(volumeNode).drawn and slicer.util.confirmYesNoDisplay(question):
            session.scans.setSegmentation(volumeNode, waiting[-1])

    def _labelingEnded(self, volumeNode) -> None:
        scan = self.logic.session.scans.scan(volumeNode)
        if scan.drawn and scan.role in (Role.SEGMENT, Role.IGNORE):
            self.logic.session.scans.setRole(volumeNode, Role.LABELLED)
        self.refresh()

    def onSuggest(self) -> None:
        with slicer.util.tryWithErrorDisplay(_("No scan can be suggested."), waitCursor=True):
            scan, reason = self.logic.session.suggestNext(self.logic.work.current())
            if scan is not None:
                self.select(scan.volumeNode)
            show(self.ui.suggestionLabel, reason)


def chooseScans(title: str) -> list[Path]:
    """Ask for files of scans; [] where none was chosen."""
    patterns = " ".join(f"*{suffix}" for suffix in SUFFIXES)
    kinds = _("Scans ({patterns})").format(patterns=patterns)
    return [Path(path) for path in qt.QFileDialog.getOpenFileNames(slicer.util.mainWindow(), title, "", kinds)]


def tellNoScans(folder: Path) -> list[Path]:
    """Say that there are none → none."""
    text = _("No scans were found in {folder}. DICOM scans are loaded in the DICOM module.")
    slicer.util.warningDisplay(text.format(folder=folder))
    return []


def scansIn(folder: Path) -> list[Path]:
    """The scans that lie directly in a folder, by name; hidden files and segmentations are none."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    names = ((path, path.name.lower()) for path in files)
    return sorted(path for path, name in names if name.endswith(SUFFIXES) and ".seg." not in name)


def _roleTexts() -> list[tuple]:
    """(value, text, explanation) of each use."""
    return [
        (Role.LABELLED.value, _("Labeled"), _("Its segmentation is what the model learns from.")),
        (Role.SEGMENT.value, _("To segment"), _("The model draws its mask.")),
        (Role.TEST.value, _("Test"), _("The model is measured on it and never learns from it.")),
        (Role.IGNORE.value, _("Ignore"), _("Nothing is done with it.")),
    ]


def _masks() -> list[tuple]:
    """(id, name, name) of each segmentation that may be a scan's own: labels may have come from elsewhere."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    own = [n for n in nodes if not (n.GetHideFromEditors() or isPrediction(n) or n.GetAttribute(GALLERY))]
    return [("", "–", _("None")), *((node.GetID(), node.GetName(), node.GetName()) for node in own)]


def _offer(combo, choices: list[tuple], chosen: str) -> None:
    """Bring a box to these (value, text, explanation); it is filled again only where they are others."""
    if [(combo.itemData(i), combo.itemText(i)) for i in range(combo.count)] != [choice[:2] for choice in choices]:
        combo.clear()
        for value, text, more in choices:
            combo.addItem(text, value)
            combo.setItemData(combo.count - 1, more, qt.Qt.ToolTipRole)
    combo.setCurrentIndex(max(0, combo.findData(chosen)))
