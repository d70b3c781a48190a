"""Section 3: curves and synthetic pairs, while the training runs and afterwards."""

import time
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Backend import WITHOUT_GENERATOR
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gallery import Gallery
from GenSegSlicerLib.Gui.Pictures import iconOf, show
from GenSegSlicerLib.Gui.Views import isPairShown, showCurves, showPair

THUMBNAIL = 96  # pixels
MOMENT = 0.1  # seconds of drawing at a time
SHOWN = 48  # the newest pairs; older ones stay in the run folder


class LookPanel:
    """Shows one run: `open` it, then `update` as it goes on, and `drawSome` while `drawing` is true."""

    def __init__(self, ui, logic, actions):
        """`actions` has stopLabeling()."""
        self.ui, self.logic, self.actions = ui, logic, actions
        self.gallery: Gallery | None = None
        self._curvesOf: Path | None = None  # the run whose curves are in the scene
        self._shown: list = []
        self._undrawn: list[int] = []  # rows without a picture yet
        ui.galleryList.setIconSize(qt.QSize(THUMBNAIL, THUMBNAIL))
        ui.galleryList.connect("itemSelectionChanged()", self.onSelected)
        ui.galleryList.connect("itemClicked(QListWidgetItem*)", lambda item: self.onClicked())
        ui.excludeButton.connect("clicked()", self.onExclude)
        ui.showCurvesButton.connect("clicked()", self.onShowCurves)
        self.close()

    def open(self, runFolder) -> None:
        """Show this run's pairs."""
        if self.gallery is None or self.gallery.runFolder != runFolder:
            self.close()
            self.gallery = Gallery(runFolder)
        self.update()

    def close(self) -> None:
        self.gallery = self._curvesOf = None
        self._shown, self._undrawn = [], []
        self.ui.galleryList.clear()
        self.ui.curvesComboBox.clear()
        self.ui.showCurvesButton.enabled = False
        self._tell()

    def update(self) -> None:
        """Take in what the run has written since."""
        self._updateCurves()
        if self.gallery is not None and self.gallery.refresh():
            self._fill()
        self._tell()

    # --- pairs ---

    def _fill(self) -> None:
        selected = self.selectedPair()
        widget = self.ui.galleryList
        wasBlocked = widget.blockSignals(True)
        widget.clear()
        self._shown = self.gallery.pairs()[:SHOWN]
        for pair in self._shown:
            item = qt.QListWidgetItem("")
            item.setToolTip(self.gallery.describe(pair))
            item.setSizeHint(qt.QSize(THUMBNAIL, THUMBNAIL))
            widget.addItem(item)
            if selected is not None and pair.key == selected.key:
                widget.setCurrentItem(item)
        widget.blockSignals(wasBlocked)
        self._undrawn = list(range(len(self._shown)))
        self.drawSome()

    @property
    def drawing(self) -> bool:
        return bool(self._undrawn)

    def drawSome(self) -> None:
        """Draw pictures for a moment: a large scan takes long to read, and the window must not wait for all."""
        end = time.monotonic() + MOMENT
        while self._undrawn and time.monotonic() < end:
            row = self._undrawn.pop(0)
            self.ui.galleryList.item(row).setIcon(iconOf(self.gallery.thumbnail(self._shown[row], THUMBNAIL)))

    def selectedPair(self):
        row = self.ui.galleryList.currentRow
        return self._shown[row] if 0 <= row < len(self._shown) else None

    def onClicked(self) -> None:
        """The selected pair again, after something else was looked at."""
        if not isPairShown():
            self.onSelected()

    def onSelected(self) -> None:
        pair = self.selectedPair()
        self._tell()
        if pair is None:
            return
        self.actions.stopLabeling()
        with slicer.util.tryWithErrorDisplay(_("The pair cannot be shown."), waitCursor=True):
            showPair(self.gallery, pair, lambda case: self.logic.session.nodesOfCase(case, self.gallery.runFolder))

    def onExclude(self) -> None:
        pair = self.selectedPair()
        if pair is None:
            return
        try:
            (self.gallery.include if pair.excluded else self.gallery.exclude)(pair)
        except (StudyFaults, OSError) as error:
            slicer.util.errorDisplay(_("The choice could not be saved: {error}").format(error=error))
        self._fill()
        self._tell()

    def _tell(self) -> None:
        pair = self.selectedPair()
        self.ui.excludeButton.enabled = pair is not None
        self.ui.excludeButton.text = (
            _("Take back into training") if pair is not None and pair.excluded else _("Exclude from training")
        )
        text = ""
        if pair is not None:
            text = self.gallery.describe(pair)
        elif self.gallery is not None:
            text = self.gallery.problem or ("" if self._shown else self._whyNone())
        show(self.ui.pairLabel, text)

    def _whyNone(self) -> str:
        """Nothing is promised before the run says what its method is."""
        method = self.gallery.about.method
        if method in WITHOUT_GENERATOR:
            return _(
                "The method of this training has no generator, so there are no synthetic pairs. Automatic leaves it "
                "out with more than five labeled scans and for vessels in photographs; under Advanced you can choose "
                "a method that has one."
            )
        waiting = method and self.logic.work.controller.active
        return _("Pairs appear here after about a fifth of the training.") if waiting else ""

    # --- curves ---

    def _updateCurves(self) -> None:
        folder = self.gallery.runFolder if self.gallery is not None else None
        if folder is None or (folder == self._curvesOf and folder != self.logic.work.controller.runFolder):
            return
        self._curvesOf = folder
        charts = list(self.logic.updateCurves(folder).values())
        combo = self.ui.curvesComboBox
        if combo.count != len(charts):
            chosen = combo.currentText
            combo.clear()
            for node in charts:
                combo.addItem(node.GetTitle(), node.GetID())
            combo.setCurrentIndex(max(0, combo.findText(chosen)))
        self.ui.showCurvesButton.enabled = bool(charts)

    def onShowCurves(self) -> None:
        chart = slicer.mrmlScene.GetNodeByID(self.ui.curvesComboBox.currentData or "")
        if chart is not None:
            showCurves(chart)
