"""The training program: where it lies, which Python runs it, and how it is called."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.Translate import _

ON_WINDOWS = os.name == "nt"
LONGEST_COMMAND = 32000  # characters that Windows takes
WITHOUT_GENERATOR = ("versemi", "supervised")  # methods
_LIBRARY_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH")
_OF_SLICER_ALONE = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "ITK_AUTOLOAD_PATH")


@dataclass
class TrainSettings:
    """What a user chooses for a run. `budget`: seconds of training; `iterations`, where given, takes its place.

    Without `learnUnlabelled` the scans without labels are segmented all the same, but nothing is learned from them.
    Of methods without a generator `generator` is not asked for.
    """

    dataset: Path
    out: Path
    method: str = "auto"
    budget: float = 300.0
    iterations: int | None = None
    device: str = "auto"
    init: Path | None = None
    seed: int = 0
    labelled: int | None = None
    unlabelled: int | None = None
    syntheticWeight: float | None = None
    learnUnlabelled: bool = True
    segmenter: str = "auto"
    generator: str = "spade"


class Backend:
    """Builds the commands. They are lists for BackendProcess; no shell reads them, so names need no quotes."""

    def __init__(self, source: Path, interpreter: Path, external: bool = False):
        """`source`: folder that holds the package `genseg`. `external`: the Python is not Slicer's own."""
        self.source, self.interpreter, self.external = Path(source), Path(interpreter), external

    @staticmethod
    def locate(moduleFolder: Path) -> Path:
        """The folder with the package `genseg`: of the source tree, or beside the module once it is installed.

        `moduleFolder`: where GenSegSlicer.py lies. Raises FileNotFoundError with the places that were looked at.
        """
        places = [Path(moduleFolder).absolute().parent / "backend" / "src", Path(moduleFolder).absolute()]
        for place in places:
            if (place / "genseg" / "cli.py").is_file():
                return place
        text = _("The training program is missing. It was looked for in {places}. Install the extension again.")
        raise FileNotFoundError(text.format(places=", ".join(map(str, places))))

    @staticmethod
    def python(slicerHome: Path) -> Path:
        """Slicer's own Python program. Raises FileNotFoundError."""
        name = "PythonSlicer.exe" if ON_WINDOWS else "PythonSlicer"
        places = [Path(slicerHome) / "bin" / name, Path(slicerHome).parent / "python-install" / "bin" / name]
        for place in places:
            if place.is_file():
                return place
        onPath = shutil.which(name)
        if onPath:
            return Path(onPath)
        text = _("Slicer's Python was not found. It was looked for in {places}.")
        raise FileNotFoundError(text.format(places=", ".join(map(str, places))))

    @staticmethod
    def externalPython(chosen: Path) -> Path:
        """The Python program that the user means: a program, or the folder of an environment.

        Raises StudyFaults where it is none; whether it has the packages is asked with Dependencies.probeCommand.
        """
        chosen = Path(chosen).expanduser()
        inside = ["python.exe", "Scripts/python.exe"] if ON_WINDOWS else ["bin/python3", "bin/python"]
        for place in [chosen / name for name in inside] if chosen.is_dir() else [chosen]:
            if place.is_file() and os.access(place, os.X_OK):
                return place.absolute()
        rule = _("A Python program is needed, or the folder of an environment, but there is none.")
        raise StudyFaults([Fault(str(chosen), rule, _("Choose the file named python, or leave the field empty."))])

    def trainCommand(self, settings: TrainSettings) -> list[str]:
        """A new run. The folder `settings.out` must not exist yet, or be empty."""
        limit = ["--budget", f"{max(1, round(settings.budget))}s"]
        if settings.iterations is not None:
            limit = ["--iterations", str(settings.iterations)]
        command = self._command("train", _path(settings.dataset), "--out", _path(settings.out), *limit)
        command += ["--method", settings.method, "--segmenter", settings.segmenter]
        command += [] if settings.method in WITHOUT_GENERATOR else ["--generator", settings.generator]
        command += ["--device", settings.device, "--seed", str(settings.seed)]
        optional = {
            "--init": None if settings.init is None else _path(settings.init),
            "--labelled": settings.labelled,
            "--unlabelled": settings.unlabelled,
            "--synthetic-weight": settings.syntheticWeight,
        }
        command += [part for name, value in optional.items() if value is not None for part in (name, str(value))]
        command += [] if settings.learnUnlabelled else ["--no-learn-unlabelled"]
        return [*command, *_OBSERVED]

    def resumeCommand(self, runFolder: Path) -> list[str]:
        """Go on with a run from its last checkpoint, with the settings it has."""
        return self._command("train", "--resume", _path(runFolder), *_OBSERVED)

    def predictCommand(
        self, model: Path, images: Sequence[Path], out: Path, device: str = "auto", mirrored: bool = True
    ) -> list[str]:
        """Segment images, or folders of them, into the new or empty folder `out`.

        `mirrored`: average over mirrored copies, better and slower. Raises StudyFaults where Windows cannot take
        that many names.
        """
        command = self._command("predict", _path(model), *map(_path, images), "--out", _path(out))
        command += ["--device", device, "--tta" if mirrored else "--no-tta", *_OBSERVED]
        if ON_WINDOWS and len(subprocess.list2cmdline(command)) > LONGEST_COMMAND:
            rule = _("Windows cannot take {count} files at once.").format(count=len(images))
            remedy = _("Put them into one folder and choose the folder, or segment them in several parts.")
            raise StudyFaults([Fault(_("The scans"), rule, remedy)])
        return command

    def doctorCommand(self) -> list[str]:
        """What this computer can do, as one JSON object on standard output (docs/run-folder.md, last section)."""
        return self._command("doctor", "--json")

    def environment(self, base: Mapping[str, str], slicerHome: Path | None = None) -> dict[str, str]:
        """The environment to run the commands in.

        `base`: that in which Slicer itself was started (`slicer.util.startupEnvironment()`). For an external Python
        whatever of Slicer's is in it nevertheless is taken out; `slicerHome` tells which folders are Slicer's.
        """
        result = dict(base)
        if self.external:
            for name in _OF_SLICER_ALONE:
                result.pop(name, None)
            for name in _LIBRARY_PATHS:
                if slicerHome is not None and name in result:
                    result[name] = _without(result[name], Path(slicerHome))
        before = result.get("PYTHONPATH")
        result["PYTHONPATH"] = os.pathsep.join([str(self.source), *([before] if before else [])])
        # ASCII lines at once, names in every script, and no file of the working folder taken for a library.
        return result | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.interpreter), "-m", "genseg", *arguments]


_OBSERVED = ("--events", "--watch-stdin")


def _path(path: Path) -> str:
    """Absolute, so that no name is taken for an option and the working folder does not matter."""
    return os.path.abspath(path)


def _without(paths: str, folder: Path) -> str:
    return os.pathsep.join(part for part in paths.split(os.pathsep) if part and not Path(part).is_relative_to(folder))
