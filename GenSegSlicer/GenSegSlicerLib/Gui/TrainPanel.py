"""Section 2: how to train, one button, and how far it is."""

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Backend import WITHOUT_GENERATOR
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gui.Pictures import icon, show
from GenSegSlicerLib.RunController import State

MINUTES = {"quick": 5, "standard": 30, "thorough": 120}
MOST_FAULTS = 12  # told in a message box
CLOUDS = ("OneDrive", "iCloud", "Dropbox", "GoogleDrive", "Nextcloud", "ownCloud")
FOLDER_SETTING, PYTHON_SETTING = "GenSegSlicer/OutputFolder", "GenSegSlicer/Python"


class TrainPanel:
    """Reads and writes the parameter node; `actions` has train(), stop() and settingsChanged()."""

    def __init__(self, ui, logic, actions):
        self.ui, self.logic, self.actions = ui, logic, actions
        self.parameters = None
        self._writing = False
        self._fillChoices()
        for combo, name in (
            (ui.budgetComboBox, "budget"),
            (ui.methodComboBox, "method"),
            (ui.generatorComboBox, "generator"),
            (ui.segmenterComboBox, "segmenter"),
            (ui.deviceComboBox, "device"),
        ):
            combo.connect("activated(int)", lambda index, box=combo, field=name: self._onChosen(box, field))
        # A path, or a network of one's own, is taken when the user has stopped typing it.
        self._typed = qt.QTimer()
        self._typed.setSingleShot(True)
        self._typed.setInterval(500)
        self._typed.connect("timeout()", self._onTyped)
        for edit in (ui.outputFolderEdit, ui.startingModelEdit, ui.pythonEdit):
            edit.connect("currentPathChanged(QString)", self._onTyping)
        ui.segmenterComboBox.lineEdit().connect("textEdited(QString)", self._onTyping)
        ui.trainButton.connect("clicked()", self.onTrain)
        ui.logCollapsibleButton.connect("contentsCollapsed(bool)", lambda collapsed: self.showLog())
        self.showState()

    # --- choices ---

    def _fillChoices(self) -> None:
        ui = self.ui
        for key, text in (
            ("quick", _("Quick: 5 minutes")),
            ("standard", _("Standard: 30 minutes")),
            ("thorough", _("Thorough: 2 hours")),
            ("minutes", _("Other:")),
        ):
            ui.budgetComboBox.addItem(text, key)
        for key, text in (
            ("auto", _("Automatic: what suits these scans")),
            ("genseg+versemi", _("Generator and scans to segment teach (GenSeg + VerSemi)")),
            ("versemi", _("No generator, scans to segment teach (VerSemi)")),
            ("genseg", _("Generator and segmenter learn together (GenSeg)")),
            ("separate", _("Generator learns on its own")),
            ("supervised", _("No generator, only your labels")),
        ):
            ui.methodComboBox.addItem(text, key)
        for key, text in (
            ("spade", _("SPADE")),
            ("pix2pix", _("pix2pix with searched layers: slow in 3D")),
            ("vae", _("Variational autoencoder")),
            ("diffusion", _("Diffusion in five steps")),
            ("joint", _("Mask and image together: new shapes")),
            ("synthseg", _("Grey values by structure, no network (SynthSeg)")),
        ):
            ui.generatorComboBox.addItem(text, key)
        for key, text in (
            ("auto", _("Automatic: what suits these scans")),
            ("dynunet", _("U-Net of nnU-Net (DynUNet)")),
            ("unet", _("Residual U-Net")),
            ("attention_unet", _("Attention U-Net")),
            ("segresnet", _("SegResNet")),
            ("swin_unetr", _("Swin UNETR: slow without a graphics card")),
            ("deeplabv3", _("DeepLabV3: fast, coarse outlines")),
        ):
            ui.segmenterComboBox.addItem(text, key)
        ui.segmenterComboBox.setCompleter(None)  # it would make one of these of the first letters of another
        self.showDevices([], "")
        ui.outputFolderEdit.filters = ui.outputFolderEdit.Dirs
        ui.startingModelEdit.filters = ui.startingModelEdit.Dirs

    def showDevices(self, devices: list, advice: str) -> None:
        """Offer the devices of the computer; the chosen one stays chosen while it is there."""
        combo = self.ui.deviceComboBox
        chosen = self.parameters.device if self.parameters is not None else "auto"
        combo.clear()
        combo.addItem(_("Automatic: the fastest there is"), "auto")
        for device, words in devices:
            combo.addItem(words, device)
        if combo.findData(chosen) < 0:
            combo.addItem(_("{device} (not found on this computer)").format(device=chosen), chosen)
        combo.setCurrentIndex(combo.findData(chosen))
        show(self.ui.deviceLabel, advice)

    def setParameterNode(self, parameters) -> None:
        """Show these parameters from now on; None while the scene is closed."""
        self.parameters = parameters
        self.updateFromParameters()

    def updateFromParameters(self) -> None:
        parameters, ui = self.parameters, self.ui
        if parameters is None or self._writing:
            return
        self._writing = True
        if ui.deviceComboBox.findData(parameters.device) < 0:
            ui.deviceComboBox.addItem(parameters.device, parameters.device)
        try:
            for combo, value in (
                (ui.budgetComboBox, parameters.budget),
                (ui.methodComboBox, parameters.method),
                (ui.generatorComboBox, parameters.generator),
                (ui.deviceComboBox, parameters.device),
            ):
                combo.setCurrentIndex(max(0, combo.findData(value)))
            self._showSegmenter()
            for edit, value in (
                (ui.outputFolderEdit, parameters.outputFolder),
                (ui.startingModelEdit, parameters.startingModel),
                (ui.pythonEdit, chosenPython()),
            ):
                if edit.currentPath != value and not self._typed.isActive():
                    edit.currentPath = value
        finally:
            self._writing = False
        self._showDependents()

    def _showSegmenter(self) -> None:
        """One of the list by its words, one of the user's own by its name, unless another is being typed."""
        combo, chosen = self.ui.segmenterComboBox, self.parameters.segmenter
        if self._typed.isActive():
            return
        combo.setCurrentIndex(combo.findData(chosen))
        if combo.currentIndex < 0:
            combo.setEditText(chosen)

    def _segmenter(self) -> str:
        """What stands in the field: words of the list, a name, or nothing, which means the first."""
        combo = self.ui.segmenterComboBox
        text = combo.currentText.strip()
        listed = combo.findText(text)
        return combo.itemData(max(0, listed)) if listed >= 0 or not text else text

    def _showDependents(self) -> None:
        """What is of use only with some choices."""
        ui = self.ui
        ui.minutesSpinBox.visible = ui.budgetComboBox.currentData == "minutes"
        ui.generatorComboBox.enabled = ui.methodComboBox.currentData not in WITHOUT_GENERATOR

    def _onChosen(self, combo, field: str) -> None:
        if self.parameters is not None and not self._writing:
            setattr(self.parameters, field, combo.currentData)
            self._showDependents()

    def _onTyping(self, text) -> None:
        if self.parameters is not None and not self._writing:
            self._typed.start()

    def _onTyped(self) -> None:
        """Take up paths and network; the folder and the Python are what the user wants next time, too."""
        if self.parameters is None:
            return
        self._typed.stop()
        self._writing = True
        try:
            self.parameters.outputFolder = self.ui.outputFolderEdit.currentPath
            self.parameters.startingModel = self.ui.startingModelEdit.currentPath
            self.parameters.segmenter = self._segmenter()
        finally:
            self._writing = False
        settings = slicer.app.userSettings()
        settings.setValue(FOLDER_SETTING, self.parameters.outputFolder)
        settings.setValue(PYTHON_SETTING, self.ui.pythonEdit.currentPath)
        self.actions.settingsChanged()

    def seconds(self) -> float:
        """The training time that is chosen."""
        return 60.0 * MINUTES.get(self.parameters.budget, self.parameters.minutes)

    # --- the button ---

    def onTrain(self) -> None:
        if self._typed.isActive():
            self._onTyped()
        if self.logic.work.controller.active:
            self.actions.stop()
        else:
            self.actions.train()

    def setReady(self, reason: str) -> None:
        """`reason`: why training cannot start, "" where it can."""
        if self.logic.work.controller.active:
            return
        self.ui.trainButton.enabled = not reason
        self.ui.trainButton.toolTip = reason or _("Train on the labeled scans, then segment the others.")

    def say(self, text: str) -> None:
        """What is being done before the run begins."""
        show(self.ui.phaseLabel, text)
        qt.QCoreApplication.processEvents(qt.QEventLoop.ExcludeUserInputEvents)  # nothing is pressed meanwhile

    def showState(self) -> None:
        """Button, phase, bar and messages as the run stands."""
        ui, controller = self.ui, self.logic.work.controller
        progress, state = controller.progress, controller.state
        if state is State.STOPPING:
            ui.trainButton.text = _("Stop at once")
            ui.trainButton.toolTip = _("End it without waiting; what was learned in the last seconds is lost.")
        elif controller.active:
            ui.trainButton.text = _("Stop")
            ui.trainButton.toolTip = _("Stop after the present step and keep the model.")
        else:
            ui.trainButton.text = _("Train and segment")
        if controller.active:
            ui.trainButton.enabled = True
        ui.trainButton.icon = icon("stop" if controller.active else "train")
        show(ui.phaseLabel, self._phase(state, progress))
        ui.progressBar.visible = controller.active
        ui.progressBar.value = int(1000 * progress.fraction)
        told = [*self.logic.work.notes, *progress.warningTexts()]
        if controller.explanation:
            told.insert(0, controller.explanation)
        show(ui.messageLabel, "\n".join(dict.fromkeys(told)))
        choices = (ui.budgetComboBox, ui.minutesSpinBox, ui.deviceComboBox, ui.unlabeledCheckBox, ui.outputFolderEdit)
        for widget in (*choices, ui.advancedCollapsibleButton):
            widget.enabled = not controller.active

    def _phase(self, state, progress) -> str:
        words = {
            State.IDLE: "",
            State.STARTING: _("Starting"),
            State.STOPPING: _("Stopping: finishing the present step"),
            State.DONE: _("Done."),
            State.STOPPED: _("Stopped."),
            State.FAILED: _("Failed."),
        }.get(state, progress.phaseText or _("Starting"))
        left = progress.timeLeftText if state is State.RUNNING else ""
        return f"{words}, {left}" if left else words

    def showLog(self) -> None:
        """The log, while it is unfolded; it stands still while the user reads further up."""
        edit, bar = self.ui.logTextEdit, self.ui.logTextEdit.verticalScrollBar()
        text = "\n".join(self.logic.work.controller.progress.log)
        if self.ui.logCollapsibleButton.collapsed or text == edit.plainText or bar.value < bar.maximum:
            return
        edit.plainText = text
        bar.value = bar.maximum


def tellFaults(title: str, error: StudyFaults) -> None:
    """All faults in one message."""
    lines = [f"• {fault}" for fault in error.faults[:MOST_FAULTS]]
    more = len(error.faults) - len(lines)
    if more > 0:
        lines.append(_("… and {count} more.").format(count=more))
    slicer.util.errorDisplay("\n".join([title, "", *lines]))


def chosenPython() -> str:
    """The Python outside Slicer that the user has chosen for this computer; "" for Slicer's own."""
    return str(slicer.app.userSettings().value(PYTHON_SETTING, "") or "")


def defaultFolder() -> str:
    """Where results go until the user says otherwise: the folder last chosen, else one beside the user's documents.

    Not among them: many computers copy documents to a cloud, and results come with copies of the scans.
    """
    return str(slicer.app.userSettings().value(FOLDER_SETTING, "") or Path.home() / "GenSegSlicer")


def mayCopyTo(folder: str) -> bool:
    """Ask, where the copies of the scans would go into a folder that some cloud copies."""
    path = str(Path(folder).expanduser())
    cloud = next((name for name in CLOUDS if name.lower() in path.lower().replace(" ", "")), None)
    text = _(
        "{cloud} copies the folder for results to its servers, and the scans of the study would go with it:\n"
        "{folder}\n\nContinue with this folder all the same?"
    )
    return cloud is None or slicer.util.confirmOkCancelDisplay(text.format(cloud=cloud, folder=path))


def isPossible(folder: str) -> bool:
    """Whether results can go there: the scene may come from another computer."""
    path = Path(folder).expanduser()
    return bool(folder) and path.is_absolute() and (path.is_dir() or path.parent.is_dir())
