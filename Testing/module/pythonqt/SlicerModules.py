"""The Python side of Slicer: `ctk`, `slicer.i18n`, the base classes, the parameter node, SampleData."""

import types

import slicer
import slicer.util

from . import ParameterNode, ParameterTypes, ScriptedLoadableModule
from .Ledger import ledger
from .QtObject import wrapperClass

translation = {"function": lambda text: text}


def tr(text):
    """`from slicer.i18n import tr as _`. Only plain strings can be looked up."""
    if not isinstance(text, str):
        raise TypeError(f"a string is needed, not {type(text).__name__}")
    return translation["function"](text)


def translate(context, text):
    return tr(text)


def ctkModule(classes) -> types.ModuleType:
    module = types.ModuleType("ctk", "CTK's widgets, as far as the rig knows them")
    for made in classes:
        setattr(module, made.cppName, wrapperClass(made))
    return module


def _module(name: str, **content) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    module.__all__ = list(content)
    return module


class SampleDataLogic:
    """Records what is registered, with Slicer's own parameter names."""

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        if not hasattr(slicer.modules, "sampleDataSourceCategories"):
            slicer.modules.sampleDataSourceCategories = {}
        slicer.modules.sampleDataSourceCategories.setdefault(category, {})["title"] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None, customDownloader=None,
        thumbnailFileName=None, loadFileTypes=None, loadFiles=None, loadFileProperties=None, checksums=None,
        loadFileType=None,
    ):  # fmt: skip
        if not hasattr(slicer.modules, "sampleDataSources"):
            slicer.modules.sampleDataSources = {}
        source = types.SimpleNamespace(**{name: value for name, value in locals().items()})
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)

    @staticmethod
    def sampleDataSourcesByCategory(category=None):
        sources = getattr(slicer.modules, "sampleDataSources", {})
        return sources if category is None else sources.get(category, [])


def libraryModules() -> dict[str, types.ModuleType]:
    """What Slicer's Python packages add, by module name. `slicer.packaging` and PyTorchUtils are absent by default."""
    base = {name: getattr(ScriptedLoadableModule, name) for name in ScriptedLoadableModule.__all__}
    wanted = (
        "Default",
        "NotNone",
        "WithinRange",
        "Minimum",
        "Maximum",
        "Choice",
        "Exclude",
        "Decimals",
        "SingleStep",
        "Validator",
    )
    wrapper = {name: getattr(ParameterTypes, name) for name in wanted}
    wrapper |= {name: getattr(ParameterNode, name) for name in ("parameterNodeWrapper", "isParameterNodeWrapper")}
    wrapper["SlicerParameterNamePropertyName"] = ParameterNode.PROPERTY
    return {
        "slicer.i18n": _module("slicer.i18n", tr=tr, translate=translate),
        "slicer.ScriptedLoadableModule": _module("slicer.ScriptedLoadableModule", **base),
        "slicer.parameterNodeWrapper": _module("slicer.parameterNodeWrapper", **wrapper),
        "SampleData": _module("SampleData", SampleDataLogic=SampleDataLogic),
    }


def replaceUtilities(monkeypatch) -> list:
    """Slicer's own util stays, but nothing is downloaded or installed by a test → the list of such calls."""
    calls: list = []

    def refuse(name: str):
        def call(*arguments, **keywords):
            calls.append((name, arguments, keywords))
            ledger.note(f"slicer.util.{name}{arguments} would have changed this machine: replace it in the test")
            raise RuntimeError(f"slicer.util.{name} is not available in tests")

        return call

    for name in ("pip_install", "pip_uninstall", "downloadFile", "_executePythonModule"):
        if hasattr(slicer.util, name):
            monkeypatch.setattr(slicer.util, name, refuse(name))
    return calls
