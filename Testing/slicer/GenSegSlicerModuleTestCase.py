"""Inside Slicer: the module opens, its .ui holds the widgets it names, its icons draw, its samples are listed."""

import subprocess
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import qt
import SampleData
import slicer


def moduleFolder() -> Path:
    return Path(slicer.modules.gensegslicer.path).parent


class GenSegSlicerModuleTestCase(unittest.TestCase):
    """Needs no package that Slicer does not bring, no network and no main window."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def test_the_module_says_what_it_is(self):
        module = slicer.modules.gensegslicer
        self.assertTrue(module.helpText)
        self.assertTrue(module.acknowledgementText)
        self.assertIn("Segmentation", module.categories)
        self.assertFalse(module.icon.isNull())

    def test_every_widget_of_the_ui_file_is_of_the_class_that_it_names(self):
        """A class that Slicer does not know becomes a plain QWidget, without an error."""
        widget = slicer.util.getModuleWidget("GenSegSlicer").parent
        wrong = []
        for element in ElementTree.parse(moduleFolder() / "Resources/UI/GenSegSlicer.ui").iter("widget"):
            name, expected = element.get("name"), element.get("class")
            found = slicer.util.findChildren(widget, name=name)
            if not any(child.className() == expected for child in found):
                wrong.append(f"{name} is {[child.className() for child in found]}, not {expected}")
        self.assertEqual(wrong, [])

    def test_the_icons_draw_something(self):
        files = sorted((moduleFolder() / "Resources/Icons").rglob("*.svg"))
        self.assertGreater(len(files), 10)
        for file in files:
            image = qt.QIcon(str(file)).pixmap(20, 20).toImage()
            self.assertFalse(image.isNull(), file)
            alpha = [image.pixel(x, y) >> 24 & 255 for x in range(image.width()) for y in range(image.height())]
            self.assertGreater(max(alpha), 200, file)

    def test_the_widget_survives_an_empty_scene_a_closed_scene_and_another_module(self):
        widget = slicer.util.getModuleWidget("GenSegSlicer")
        widget.enter()
        slicer.mrmlScene.Clear(0)
        widget.exit()
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "no voxels yet")
        widget.enter()
        widget.exit()

    def test_both_samples_are_listed(self):
        from GenSegSlicerLib import SampleDataSources as samples

        loaders = dict.fromkeys((samples.HIPPOCAMPUS, samples.PHANTOM), lambda source: None)
        for _again in range(2):
            samples.registerSamples(SampleData.SampleDataLogic, moduleFolder() / "Resources/Icons", loaders)
        listed = SampleData.SampleDataLogic.sampleDataSourcesByCategory(samples.CATEGORY)
        self.assertEqual([source.sampleName for source in listed], [samples.HIPPOCAMPUS, samples.PHANTOM])

    def test_the_backend_is_found(self):
        from GenSegSlicerLib.Backend import Backend

        self.assertTrue((Backend.locate(moduleFolder()) / "genseg" / "__main__.py").is_file())

    def test_slicers_own_python_is_found_and_sees_the_backend(self):
        from GenSegSlicerLib.Backend import Backend

        backend = Backend(Backend.locate(moduleFolder()), Backend.python(slicer.app.slicerHome))
        environment = backend.environment(slicer.util.startupEnvironment(), Path(slicer.app.slicerHome))
        command = [str(backend.interpreter), "-c", "import genseg, SimpleITK; print(genseg.__file__)"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(Path(done.stdout.strip().splitlines()[-1]).is_relative_to(backend.source))


if __name__ == "__main__":
    unittest.main()
