"""Slicer's own Segment Editor inside the module, on one scan at a time."""

import slicer
from slicer.i18n import tr as _

TAG = "GenSegSlicer"  # of the editor's own parameter node, so that the Segment Editor module keeps its own


class LabelingEditor:
    """Open on a scan, draw, Done. The editor is made when it is first needed: that takes a second."""

    def __init__(self, ui, ended):
        """`ended` is called with the volume when the user is done."""
        self.ui, self.ended = ui, ended
        self.editor = None
        self.volumeNode = None
        self._shortcuts = False
        ui.editorFrame.visible = False
        ui.doneButton.connect("clicked()", self.onDone)

    @property
    def isOpen(self) -> bool:
        return self.volumeNode is not None

    def edits(self, node) -> bool:
        """Whether this volume or segmentation is being edited."""
        return self.isOpen and (node is self.volumeNode or node is self.editor.segmentationNode())

    def open(self, volumeNode, segmentationNode) -> None:
        if self.isOpen and self.volumeNode is not volumeNode:
            self.onDone()
        self._make()
        self.volumeNode = volumeNode
        self.editor.setMRMLSegmentEditorNode(_editorNode())
        self.editor.setSegmentationNode(segmentationNode)
        self.editor.setSourceVolumeNode(volumeNode)
        self.editor.setupViewObservations()
        self._installShortcuts()
        self.ui.editorTitleLabel.text = _("Labeling {name}").format(name=volumeNode.GetName())
        self.ui.editorFrame.visible = True

    def onDone(self) -> None:
        volumeNode = self.volumeNode
        self.close()
        if volumeNode is not None:
            self.ended(volumeNode)

    def close(self) -> None:
        """Put the editor away; what was drawn stays."""
        self.ui.editorFrame.visible = False
        self.volumeNode = None
        if self.editor is not None:
            self.leave()
            self.editor.setSegmentationNode(None)
            self.editor.setSourceVolumeNode(None)

    def enter(self) -> None:
        if self.isOpen:
            self.editor.setupViewObservations()
            self._installShortcuts()

    def leave(self) -> None:
        """Let go of the views and keys, as when another module is opened."""
        if self.editor is None:
            return
        self.editor.setActiveEffect(None)
        if self._shortcuts:
            self.editor.uninstallKeyboardShortcuts()
            self._shortcuts = False
        self.editor.removeViewObservations()

    def sceneClosing(self) -> None:
        self.close()
        if self.editor is not None:
            self.editor.setMRMLSegmentEditorNode(None)

    def cleanup(self) -> None:
        self.close()
        if self.editor is not None:
            self.editor.setMRMLScene(None)

    def _make(self) -> None:
        if self.editor is not None:
            return
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMaximumNumberOfUndoStates(10)
        self.editor.setMRMLScene(slicer.mrmlScene)
        # Which scan is labelled is picked in the table above.
        self.editor.setSegmentationNodeSelectorVisible(False)
        self.editor.setSourceVolumeNodeSelectorVisible(False)
        self.ui.editorFrame.layout().addWidget(self.editor)

    def _installShortcuts(self) -> None:
        if not self._shortcuts:
            self.editor.installKeyboardShortcuts()
            self._shortcuts = True


def _editorNode():
    node = slicer.mrmlScene.GetSingletonNode(TAG, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        node.UnRegister(None)
        node.SetSingletonTag(TAG)
        node = slicer.mrmlScene.AddNode(node)
    return node
