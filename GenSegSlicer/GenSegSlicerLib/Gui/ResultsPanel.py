"""Section 4: earlier and present trainings, their masks, and segmenting more scans with them."""

from dataclasses import dataclass
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Batches import Batches
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gui.ScansPanel import ROW_HEIGHT, chooseScans, scansIn, tellNoScans
from GenSegSlicerLib.Gui.TrainPanel import tellFaults
from GenSegSlicerLib.Gui.Views import showScan
from GenSegSlicerLib.Runs import Run, describe


class ResultsPanel:
    """`open` shows the results of a run or a batch; the list on top offers the runs of the folder for results."""

    def __init__(self, ui, logic, actions):
        """`actions` has label(volume), stopLabeling(), refreshScans(), openRun, resume, segment and bring(masks)."""
        self.ui, self.logic, self.actions = ui, logic, actions
        self.folder: Path | None = None  # of the predictions in the table: a run, or a batch of more scans
        self.model: Path | None = None  # the run whose model made the batch
        self.busy = False
        self._listed: list[Listed] = []
        self._cases: list[str] = []  # of the rows of the table
        ui.runComboBox.connect("activated(int)", lambda index: self._tell())
        for button, slot in (
            (ui.loadRunButton, self.onLoad),
            (ui.reportButton, self.onReport),
            (ui.resumeButton, self.onResume),
            (ui.removeRunButton, self.onRemove),
            (ui.showButton, self.onShow),
            (ui.acceptButton, self.onAccept),
            (ui.correctButton, self.onCorrect),
            (ui.segmentFilesButton, self.onSegmentFiles),
            (ui.segmentFolderButton, self.onSegmentFolder),
        ):
            button.connect("clicked()", slot)
        ui.resultsTable.connect("itemSelectionChanged()", self._tell)
        ui.resultsTable.verticalHeader().setVisible(False)
        ui.resultsTable.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self._tell()

    # --- runs ---

    def refreshRuns(self) -> None:
        """Read the folder for results again; what is chosen stays chosen."""
        chosen, runs = self.ui.runComboBox.currentData, self.logic.work.runs()
        batches = self.logic.work.batches() if runs else {}
        self._listed = []
        for run in runs:
            self._listed += [Listed(run), *(Listed(run, batch) for batch in batches.get(run.path, []))]
        self.ui.runComboBox.clear()
        for listed in self._listed:
            self.ui.runComboBox.addItem(listed.title, str(listed.folder))
        self._choose(chosen)

    def _choose(self, *paths) -> None:
        """The first of these that is listed; else the newest run."""
        indices = [self.ui.runComboBox.findData(str(path or "")) for path in paths]
        found = next((index for index in indices if index >= 0), 0)
        self.ui.runComboBox.setCurrentIndex(found if self._listed else -1)
        self._tell()

    def chosen(self) -> "Listed | None":
        row = self.ui.runComboBox.currentIndex
        return self._listed[row] if 0 <= row < len(self._listed) else None

    def chosenRun(self):
        """The run that is chosen, or whose model made the batch that is."""
        chosen = self.chosen()
        return None if chosen is None else chosen.run

    def open(self, folder: Path | None, model: Path | None = None) -> None:
        """Show the table of a run, or of a batch that the run `model` has segmented, and choose it."""
        self.folder, self.model = folder, model
        self.refreshRuns()
        self._choose(folder, model)
        self.fillTable()

    def setBusy(self, busy: bool) -> None:
        """While something runs no other run may be changed."""
        self.busy = busy
        self._tell()

    def onLoad(self) -> None:
        """Its curves, pairs and masks; scans that are not in the scene come from their files."""
        chosen = self.chosen()
        if chosen is not None:
            model = None if chosen.batch is None else chosen.run.path
            self.actions.openRun(chosen.folder, model)
            self.actions.bring(self.logic.work.bringAll(chosen.folder, model, again=True))

    def onReport(self) -> None:
        run = self.chosenRun()
        report = run.path / "report.html" if run is not None else None
        if report is not None and report.exists():
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(report)))

    def onResume(self) -> None:
        run = self.chosenRun()
        if run is not None:
            self.actions.resume(run.path)

    def onRemove(self) -> None:
        chosen = self.chosen()
        if chosen is None or not slicer.util.confirmYesNoDisplay(chosen.removeQuestion):
            return
        with slicer.util.tryWithErrorDisplay(_("It cannot be deleted."), waitCursor=True):
            if chosen.batch is None:
                self.logic.work.removeRun(chosen.run)
            else:
                self.logic.work.removeBatch(chosen.batch)
            if chosen.folder in (self.folder, self.model):
                self.open(None)
                self.actions.closeRun()
        self.refreshRuns()

    # --- masks ---

    def fillTable(self) -> None:
        """Bring the table to the run's predictions."""
        header, cases, rows = self.logic.session.results(self.folder, self.model)
        table = self.ui.resultsTable
        selected = self.selectedCase()
        table.setColumnCount(len(header))
        table.setHorizontalHeaderLabels(header)
        table.setRowCount(len(rows))
        self._cases = cases
        for row, cells in enumerate(rows):
            for column, text in enumerate(cells):
                table.setItem(row, column, qt.QTableWidgetItem(text))
            if cases[row] == selected:
                table.selectRow(row)
        table.resizeColumnsToContents()
        self._tell()

    def selectedCase(self) -> str | None:
        row = self.ui.resultsTable.currentRow()
        return self._cases[row] if 0 <= row < len(self._cases) else None

    def _selectedNodes(self) -> tuple:
        """(volume, predicted segmentation) of the selected row; None for what is not in the scene."""
        case = self.selectedCase()
        return self.logic.session.predictionOf(self.folder, case) if case is not None else (None, None)

    def showFirst(self) -> None:
        """Where nothing is selected, the scan that deserves the first look."""
        if self._cases and self.selectedCase() is None and not self.logic.work.controller.active:
            self.ui.resultsTable.selectRow(0)
            self.onShow(in3D=False)

    def onShow(self, in3D: bool = True) -> None:
        if self.selectedCase() is None:
            return
        self.actions.stopLabeling()
        volume, segmentation = self._selectedNodes()
        if volume is None:
            self._bringSelected()
            volume, segmentation = self._selectedNodes()
        if volume is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The mask cannot be shown."), waitCursor=True):
            if segmentation is None:
                segmentation = self.logic.session.scans.segmentationOf(volume)
            if segmentation is not None:
                self.logic.session.showSurface(segmentation)
            showScan(volume, segmentation, in3D)

    def _bringSelected(self) -> None:
        """The selected mask with its scan from the files; why not, where that fails."""
        masks = self.logic.session.importPredictions(
            self.folder, model=self.model, loadScans=True, again=True, only=self.selectedCase()
        )
        faults = [fault for fault in masks if fault is not None]
        if faults:
            tellFaults(_("It cannot be shown:"), StudyFaults(faults))
        self.actions.refreshScans()
        self._tell()

    def onAccept(self) -> None:
        volume, segmentation = self._selectedNodes()
        if segmentation is not None and self._mayReplace(volume):
            self.logic.session.accept(segmentation, volume)
            self.actions.refreshScans()
            self._tell()

    def onCorrect(self) -> None:
        """The scan counts as labeled once the user is done."""
        volume, segmentation = self._selectedNodes()
        if segmentation is not None and self._mayReplace(volume):
            use = self.logic.session.scans.scan(volume).role
            self.logic.session.accept(segmentation, volume)
            self.logic.session.scans.setRole(volume, use)
            self.actions.label(volume)
            self._tell()

    def _mayReplace(self, volume) -> bool:
        """Ask before a drawn segmentation stops being the scan's own; it stays in the scene."""
        scan = self.logic.session.scans.scan(volume)
        if not scan.drawn:
            return True
        text = _("“{scan}” has a segmentation of its own. Use the predicted one instead? Yours stays in the scene.")
        return slicer.util.confirmYesNoDisplay(text.format(scan=scan.name))

    # --- more scans ---

    def onSegmentFiles(self) -> None:
        self._segment(chooseScans(_("Segment files")))

    def onSegmentFolder(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Segment every scan of a folder"))
        if folder:
            self._segment(scansIn(Path(folder)) or tellNoScans(Path(folder)))

    def _segment(self, paths: list[Path]) -> None:
        run = self.chosenRun()
        if run is not None and paths:
            self.actions.segment(run.path, paths)

    # --- what can be pressed ---

    def _tell(self) -> None:
        ui, chosen, run = self.ui, self.chosen(), self.chosenRun()
        ui.runLabel.text = chosen.about if chosen is not None else _("No training in the folder for results yet.")
        ui.loadRunButton.enabled = run is not None and run.usable and not self.busy
        ui.reportButton.enabled = run is not None and (run.path / "report.html").exists()
        ui.resumeButton.enabled = run is not None and chosen.batch is None and run.resumable and not self.busy
        ui.removeRunButton.enabled = run is not None and not self.busy
        for button in (ui.segmentFilesButton, ui.segmentFolderButton):
            button.enabled = run is not None and run.usable and not self.busy
        volume, segmentation = self._selectedNodes()
        ui.showButton.enabled = self.selectedCase() is not None
        for button in (ui.acceptButton, ui.correctButton):
            button.enabled = segmentation is not None and volume is not None


@dataclass(frozen=True)
class Listed:
    """A line of the list: a run, or below it a batch of more scans that its model has segmented."""

    run: Run
    batch: Path | None = None

    @property
    def folder(self) -> Path:
        return self.run.path if self.batch is None else self.batch

    @property
    def title(self) -> str:
        """When, and how well it did where that was measured."""
        if self.batch is not None:
            return _("    more scans, {name}").format(name=self.batch.name)
        run = self.run
        return run.name if run.dice is None else _("{name}, Dice {dice}").format(name=run.name, dice=f"{run.dice:.2f}")

    @property
    def about(self) -> str:
        return describe(self.run) if self.batch is None else Batches.describe(self.batch)

    @property
    def removeQuestion(self) -> str:
        question = _("Delete these masks of more scans? The training with its model stays.\n{folder}")
        if self.batch is None:
            question = _(
                "Delete this training with its model and all masks it made, also those of more scans?\n{folder}"
            )
        return question.format(folder=self.folder) + "\n" + _("Masks in the scene stay.")
