"""The samples in Slicer's Sample Data module."""

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Backend import Backend
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gui.TrainPanel import tellFaults
from GenSegSlicerLib.SampleDataSources import HIPPOCAMPUS, PHANTOM, SampleDataSources, phantomOf, registerSamples


def registerSampleData(moduleFolder: Path) -> None:
    """List the hippocampus, which is downloaded, and the phantom, which is drawn here."""
    import SampleData

    def loader(load):
        def run(source):
            sources = SampleDataSources(
                slicer.mrmlScene,
                SampleData.SampleDataLogic().downloadFileIntoCache,
                lambda: phantomOf(Backend.locate(moduleFolder)),
                slicer.util.showStatusMessage,
            )
            try:
                return load(sources)
            except StudyFaults as error:
                tellFaults(_("The sample could not be loaded."), error)
                return []

        return run

    loaders = {
        HIPPOCAMPUS: loader(SampleDataSources.loadHippocampus),
        PHANTOM: loader(SampleDataSources.loadPhantom),
    }
    registerSamples(SampleData.SampleDataLogic, moduleFolder / "Resources" / "Icons", loaders)
