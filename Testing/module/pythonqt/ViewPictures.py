"""What a user sees in the slice, 3D and plot views: drawn off screen by Slicer's own displayable managers."""

from pathlib import Path

import slicer
import vtk

_SLICE = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLRulerDisplayableManager",
)
_THREE_D = ("vtkMRMLCameraDisplayableManager", "vtkMRMLViewDisplayableManager", "vtkMRMLModelDisplayableManager",
            "vtkMRMLSegmentationsDisplayableManager3D")  # fmt: skip


def _window(size: tuple[int, int], *renderers) -> vtk.vtkRenderWindow:
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetSize(*size)
    window.SetNumberOfLayers(len(renderers))
    for layer, renderer in enumerate(renderers):
        renderer.SetLayer(layer)
        window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    return window


def _managers(factory, names, applicationLogic, renderer, node):
    """The displayable managers of one view, as its widget makes them."""
    factory = factory.GetInstance()
    factory.SetMRMLApplicationLogic(applicationLogic)
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.SetRenderer(renderer)
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    return group


def _write(window, path: Path) -> Path:
    window.Render()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(window)
    grabber.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.SetInputConnection(grabber.GetOutputPort())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.SetFileName(str(path))
    writer.Write()
    window.Finalize()
    return path


def slicePicture(widget, applicationLogic, path: Path, size: tuple[int, int], fit: bool) -> Path:
    """A slice view with its volumes and segmentations. `widget` is the qMRMLSliceWidget stand-in."""
    logic, node = widget._logic, widget._node
    logic.ResizeSliceNode(*size)
    if fit:
        logic.FitSliceToBackground()
    renderer, overlay = vtk.vtkRenderer(), vtk.vtkRenderer()
    for each in (renderer, overlay):
        each.GetActiveCamera().ParallelProjectionOn()
    window = _window(size, renderer, overlay)
    group = _managers(slicer.vtkMRMLSliceViewDisplayableManagerFactory, _SLICE, applicationLogic, renderer, node)
    mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    if logic.GetImageDataConnection() is not None:
        mapper.SetInputConnection(logic.GetImageDataConnection())
        renderer.AddViewProp(actor)
    written = _write(window, path)
    group.SetMRMLDisplayableNode(None)
    return written


def threeDPicture(widget, applicationLogic, path: Path, size: tuple[int, int]) -> Path:
    """The 3D view, its camera on everything that is visible."""
    renderer = vtk.vtkRenderer()
    renderer.GradientBackgroundOn()
    renderer.SetBackground(0.757, 0.765, 0.910)
    renderer.SetBackground2(0.455, 0.471, 0.745)
    window = _window(size, renderer)
    node = widget._node
    node.SetBoxVisible(0)
    node.SetAxisLabelsVisible(0)
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory
    group = _managers(factory, _THREE_D, applicationLogic, renderer, node)
    window.Render()
    renderer.ResetCamera()
    written = _write(window, path)
    group.SetMRMLDisplayableNode(None)
    return written


def plotPicture(chart, path: Path, size: tuple[int, int]) -> Path:
    """The lines of a chart node. Not Slicer's plot widget (it is Qt), but VTK's chart, as that one fills it."""
    view = vtk.vtkContextView()
    view.GetRenderWindow().SetOffScreenRendering(1)
    view.GetRenderWindow().SetSize(*size)
    shown = vtk.vtkChartXY()
    view.GetScene().AddItem(shown)
    shown.SetTitle(chart.GetTitle() or "")
    shown.SetShowLegend(chart.GetLegendVisibility())
    for axis, title in ((vtk.vtkAxis.BOTTOM, chart.GetXAxisTitle()), (vtk.vtkAxis.LEFT, chart.GetYAxisTitle())):
        shown.GetAxis(axis).SetTitle(title or "")
    for index in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(index)
        table = series.GetTableNode().GetTable()
        plot = shown.AddPlot(vtk.vtkChart.LINE)
        plot.SetInputData(table, series.GetXColumnName(), series.GetYColumnName())
        plot.SetColorF(*series.GetColor())
        plot.SetWidth(series.GetLineWidth())
        plot.SetLabel(series.GetName())
    return _write(view.GetRenderWindow(), path)
