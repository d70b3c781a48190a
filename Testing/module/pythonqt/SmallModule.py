"""A small scripted module, as text, with which the rig is tested."""

MODULE = """
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin


class Speed(Enum):
    SLOW = 1
    FAST = 2


@parameterNodeWrapper
class SmallParameterNode:
    scan: vtkMRMLScalarVolumeNode
    minutes: Annotated[int, WithinRange(1, 600), Default(30)]
    speed: Speed = Speed.FAST
    careful: bool = True
    folder: Path


class Small(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Small")
        parent.categories = ["Segmentation"]
        slicer.app.connect("startupCompleted()", self.onStart)

    def onStart(self):
        import SampleData
        SampleData.SampleDataLogic.registerCustomSampleDataSource(category="Small", sampleName="one")


class SmallWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.log = []

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        root = slicer.util.loadUI(self.resourcePath("UI/Small.ui"))
        self.layout.addWidget(root)
        self.ui = slicer.util.childWidgetVariables(root)
        root.setMRMLScene(slicer.mrmlScene)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onClose)
        self.logic = ScriptedLoadableModuleLogic()
        self.logic.moduleName = "Small"
        self.ui.goButton.connect("clicked()", self.onGo)
        slicer.app.connect("aboutToQuit()", self.onQuit)
        self.connectNode()

    def connectNode(self):
        self.parameters = SmallParameterNode(self.logic.getParameterNode())
        self.tag = self.parameters.connectGui(self.ui)

    def enter(self):
        self.log.append("enter")

    def exit(self):
        self.log.append("exit")

    def cleanup(self):
        self.log.append("cleanup")
        self.removeObservers()

    def onClose(self, caller, event):
        self.log.append("close")
        self.parameters.disconnectGui(self.tag)

    def onQuit(self):
        self.log.append("quit")

    def onGo(self):
        with slicer.util.tryWithErrorDisplay(_("It failed.")):
            if not slicer.util.confirmOkCancelDisplay(_("Really go?")):
                self.log.append("refused")
                return
            self.log.append(f"went {self.parameters.minutes}")
            if self.ui.scanComboBox.currentNode() is None:
                raise ValueError("no scan")
"""

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Small</class>
 <widget class="qMRMLWidget" name="Small"><layout class="QVBoxLayout" name="rows">
  <item><widget class="ctkCollapsibleButton" name="inputs"><property name="text"><string>Inputs</string></property>
   <layout class="QFormLayout" name="form">
    <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="scanComboBox">
     <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     <property name="noneEnabled"><bool>true</bool></property>
     <property name="SlicerParameterName" stdset="0"><string>scan</string></property></widget></item>
    <item row="1" column="1"><widget class="QSpinBox" name="minutesSpinBox">
     <property name="SlicerParameterName" stdset="0"><string>minutes</string></property></widget></item>
    <item row="2" column="1"><widget class="QComboBox" name="speedComboBox">
     <property name="SlicerParameterName" stdset="0"><string>speed</string></property></widget></item>
    <item row="3" column="1"><widget class="QCheckBox" name="carefulCheckBox">
     <property name="SlicerParameterName" stdset="0"><string>careful</string></property></widget></item>
    <item row="4" column="1"><widget class="ctkPathLineEdit" name="folderEdit">
     <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>
     <property name="SlicerParameterName" stdset="0"><string>folder</string></property></widget></item>
   </layout></widget></item>
  <item><widget class="QPushButton" name="goButton"><property name="text"><string>Go</string></property></widget></item>
 </layout></widget>
 <customwidgets>
  <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
  <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>q.h</header></customwidget>
  <customwidget><class>ctkCollapsibleButton</class><extends>QWidget</extends><header>c.h</header></customwidget>
  <customwidget><class>ctkPathLineEdit</class><extends>QWidget</extends><header>c.h</header></customwidget>
 </customwidgets>
 <connections><connection><sender>Small</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>scanComboBox</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections>
</ui>
"""
