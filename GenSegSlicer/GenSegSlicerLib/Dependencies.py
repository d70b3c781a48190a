"""What the training program needs in a Python, what of it is missing, and how it gets there with the user's consent."""

import importlib
import importlib.metadata
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from GenSegSlicerLib.Translate import _

TORCH = ("torch", "2.8")
OF_SLICER = (("numpy", "1.26"), ("SimpleITK", "2.4"))  # checked, never installed
# pip may neither bring nor change these: they are Slicer's own, or come by the PyTorch extension.
OF_TORCH = ("torch", "torchvision", "torchaudio")  # the PyTorch extension replaces them together
NEVER = ("numpy", "SimpleITK", "vtk", "requests", *OF_TORCH)
# Where they are there, they stay as they are: Slicer and its extensions have loaded them.
KEPT = (
    *("scipy", "pillow", "pydicom", "packaging", "pyparsing", "six", "typing-extensions", "certifi", "idna"),
    *("charset-normalizer", "urllib3", "highdicom", "dicomweb-client", "pip", "setuptools", "wheel"),
)
# MB on the disk with what each brings along (Python 3.11, Linux, November 2026).
SIZES = {"monai": 16, "scikit-image": 60, "safetensors": 2, "einops": 1, "pydantic": 12, "typer": 4, "rich": 14}
SIZES |= {"diffusers": 95, "scipy": 143}


@dataclass(frozen=True)
class Need:
    """A package, the least version, and the version that is there: None for absent, "" where it does not say."""

    name: str
    floor: str
    installed: str | None

    @property
    def met(self) -> bool:
        return self.installed is not None and (not self.installed or atLeast(self.installed, self.floor))

    @property
    def requirement(self) -> str:
        return f"{self.name}>={self.floor}"


@dataclass(frozen=True)
class Outcome:
    """Of an installation. ok: all that is needed is there. reason: why not. hints: what may help. restart: advised."""

    ok: bool
    reason: str = ""
    hints: list[str] = field(default_factory=list)
    restart: bool = False


class Dependencies:
    """The needs of the training program in one Python: Slicer's own, or an external one that was asked (`ofProbe`)."""

    def __init__(self, requirementsFile: Path, versionOf: Callable[[str], str | None] | None = None):
        """`requirementsFile`: lines `name>=version`; raises ValueError for others. `versionOf`: as installedVersion."""
        self.floors = dict(readRequirements(requirementsFile))
        self.external = False
        self._versionOf = versionOf or installedVersion

    @classmethod
    def ofProbe(cls, requirementsFile: Path, output: str) -> "Dependencies":
        """For an external Python, from what `probeCommand` printed. Raises ValueError where that is of no use."""
        for line in reversed(output.splitlines()):
            if line.startswith('{"genseg-probe"'):
                versions = json.loads(line)["genseg-probe"]
                dependencies = cls(requirementsFile, versions.get)
                dependencies.external, dependencies.pythonVersion = True, versions["python"]
                return dependencies
        raise ValueError(_("The Python that was chosen does not answer."))

    def probeCommand(self, interpreter: Path) -> list[str]:
        """Asks a Python for the versions of everything needed; it needs no package for that."""
        names = [name for name, _floor in self._wanted()]
        return [str(interpreter), "-c", _PROBE, *names]

    def needs(self) -> list[Need]:
        """Everything needed, in the order in which it is installed."""
        return [Need(name, floor, self._versionOf(name)) for name, floor in self._wanted()]

    def missing(self) -> list[Need]:
        """What is absent or too old."""
        importlib.invalidate_caches()
        return [need for need in self.needs() if not need.met]

    def planText(self) -> str:
        """What will be installed, how, and about how large, to be shown before anything happens; "" for nothing."""
        missing = self.missing()
        packages = [need for need in missing if need.name in self.floors]
        lines = []
        if any(need.name == TORCH[0] for need in missing):
            text = _(
                "PyTorch {floor} or newer, by Slicer's PyTorch extension: about 1 GB, with support for NVIDIA GPUs 7 GB"
            )
            lines.append("• " + text.format(floor=TORCH[1]))
        if packages:
            size = sum(SIZES.get(need.name, 20) for need in packages)
            if any(need.name == "scikit-image" for need in packages) and self._versionOf("scipy") is None:
                size += SIZES["scipy"]
            text = _("{names}, from pypi.org: about {size} MB").format(
                names=", ".join(n.name for n in packages), size=size
            )
            lines.append("• " + text)
        if not lines:
            return ""
        begin = _("The training program needs packages that this Python does not have:")
        end = _("Slicer's own numpy, SimpleITK, vtk and requests stay as they are. Your scans stay on this computer.")
        return "\n".join([begin, *lines, end])

    def constraintsText(self) -> str:
        """Content of a constraints file for pip: Slicer's own packages stay in their versions, or stay away."""
        lines = []
        for name in (*NEVER, *KEPT):
            version = self._versionOf(name)
            if version:
                lines.append(f"{name}=={version}")
            elif name in NEVER:
                lines.append(f"{name}<0")
        return "\n".join(lines) + "\n"

    def install(
        self,
        installer: Callable[[list[str], Path], object],
        torchInstaller: Callable[[str], object] | None,
        ask: Callable[[str], bool],
        testing: bool = False,
    ) -> Outcome:
        """Install what is missing, after asking. Nothing is started where this does not return `ok`.

        installer(requirements, constraintsFile): runs pip; raises where it fails, with pip's output as `output`.
        torchInstaller(">=2.8"): of the PyTorch extension, None where that is absent; what it returns is not trusted.
        ask(plan): shows the plan; True is consent. testing: Slicer runs its tests, where every question is answered
        with yes by nobody: then nothing is installed.
        """
        missing = self.missing()
        refusal = self._refusal(missing, torchInstaller is not None, testing)
        if not missing or refusal:
            return Outcome(not refusal, refusal)
        if not ask(self.planText()):
            return Outcome(False, _("Nothing was installed, because you declined. Training needs these packages."))
        before = {name: self._versionOf(name) for name in (*NEVER, *KEPT, *self.floors)}
        try:
            if any(need.name == TORCH[0] for need in missing):
                torchInstaller(">=" + TORCH[1])
                if any(need.name == TORCH[0] for need in self.missing()):
                    return Outcome(False, _("PyTorch was not installed. Nothing else was installed either."))
            packages = [need.requirement for need in self.missing() if need.name in self.floors]
            if packages:
                self._runPip(installer, packages)
        except Exception as failed:  # pip and PyTorch's installer fail in as many ways as there are networks
            return _failure(failed)
        return self._verdict(before)

    def _wanted(self) -> list[tuple[str, str]]:
        return [*OF_SLICER, TORCH, *self.floors.items()]

    def _refusal(self, missing: list[Need], hasTorchInstaller: bool, testing: bool) -> str:
        """Why nothing can be installed; empty where it can, or where nothing is missing."""
        named = ", ".join(need.requirement for need in missing)
        if missing and self.external:
            text = _("The Python that was chosen lacks {names}. Install them there, or leave the field empty.")
            return text.format(names=named)
        old = [need for need in missing if need.name in dict(OF_SLICER)]
        if old:
            text = _("Slicer's own {names} is missing or too old. It is never replaced: use a newer Slicer.")
            return text.format(names=", ".join(f"{need.name} {need.installed or ''}".strip() for need in old))
        if missing and not hasTorchInstaller and any(need.name == TORCH[0] for need in missing):
            return _("The PyTorch extension is missing. Install it with the Extensions Manager, and restart Slicer.")
        if missing and testing:
            return _("While Slicer runs its tests nothing is installed. Missing: {names}.").format(names=named)
        return ""

    def _runPip(self, installer: Callable[[list[str], Path], object], packages: list[str]) -> None:
        with tempfile.TemporaryDirectory(prefix="genseg-") as folder:
            constraints = Path(folder) / "constraints.txt"
            constraints.write_text(self.constraintsText(), encoding="ascii")
            installer(packages, constraints)

    def _verdict(self, before: Mapping[str, str | None]) -> Outcome:
        """After an installation that raised nothing: believe only what is there now."""
        missing = self.missing()
        changed = [name for name in before if before[name] is not None and self._versionOf(name) != before[name]]
        free = OF_TORCH if TORCH[0] in changed or before.get(TORCH[0]) is None else ()
        broken = [name for name in changed if name in NEVER and name not in free]
        if broken:
            text = _("The installation changed {names}, which belong to Slicer. Install Slicer again if it misbehaves.")
            return Outcome(False, text.format(names=", ".join(broken)), restart=True)
        if missing:
            text = _("After the installation still missing: {names}. Restart Slicer and try again.")
            return Outcome(False, text.format(names=", ".join(need.requirement for need in missing)), restart=True)
        return Outcome(True, restart=bool({_plain(name) for name in changed} & _loaded()))


def readRequirements(file: Path) -> list[tuple[str, str]]:
    """(name, floor) of each line; empty lines, comments and options are skipped. Raises ValueError for other forms."""
    found = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)\s*>=\s*(\d+(?:\.\d+)*)", text)
        if not match:
            raise ValueError(f"{file}: '{line}' must have the form name>=version")
        found.append((match[1], match[2]))
    return found


def installedVersion(name: str) -> str | None:
    """Version of a package in this Python; None where it is absent, "" where Slicer's own does not say."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        present = name in dict(OF_SLICER) and importlib.util.find_spec(name) is not None
        return "" if present else None


def atLeast(version: str, floor: str) -> bool:
    """Whether a version is not below the floor; pre-releases of the floor are."""
    parts = re.match(r"v?(\d+(?:\.\d+)*)(.*)", version.strip())
    if not parts:
        return False
    release, wanted = ([int(n) for n in text.split(".")] for text in (parts[1], floor))
    length = max(len(release), len(wanted))
    release, wanted = (numbers + [0] * (length - len(numbers)) for numbers in (release, wanted))
    early = re.match(r"[-_.]?(a|b|c|rc|alpha|beta|pre|preview|dev)", parts[2].lower())
    return release > wanted or (release == wanted and not early)


def explainPip(output: str) -> list[str]:
    """What pip's output most likely means, as advice; [] where it is not known."""
    return [advice for pattern, advice in _advice() if re.search(pattern, output, re.IGNORECASE)][:2]


def _advice() -> list[tuple[str, str]]:
    """(pattern, advice): what blocks the way first, as the rest may be its consequence."""
    return [
        (
            r"ProxyError|Cannot connect to proxy|Proxy Authentication Required|\b407\b",
            _("A proxy is in the way. Ask your IT for its address and set HTTPS_PROXY before you start Slicer."),
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError|certificate verify failed",
            _("Your network replaces certificates. Ask your IT for theirs and set PIP_CERT to its file."),
        ),
        (
            r"Name or service not known|Temporary failure in name resolution|getaddrinfo failed|nodename nor servname"
            r"|NameResolutionError|Network is unreachable|No route to host|Failed to establish a new connection"
            r"|Connection refused|ConnectTimeout|Read timed out|connection broken",
            _(
                "The internet cannot be reached. Connect this computer, or ask your IT to allow pypi.org,"
                " files.pythonhosted.org and download.pytorch.org."
            ),
        ),
        (
            r"\b403\b.{0,40}(Forbidden|Client Error)|HTTP error 403",
            _("A firewall refuses the download. Ask your IT to allow pypi.org and files.pythonhosted.org."),
        ),
        (r"No space left on device|Errno 28|WinError 112", _("The disk is full. Delete files you do not need.")),
        (
            r"Permission denied|Errno 13|WinError 5\b|Access is denied|WinError 32",
            _("Files of Slicer cannot be written. Restart Slicer; or install it in a folder of your own."),
        ),
        (
            r"ResolutionImpossible|conflicting dependencies|Cannot install .* because",
            _("Packages of another extension or of Slicer are in the way. Choose an external Python under Advanced."),
        ),
        (
            r"No matching distribution found|Could not find a version",
            _("There is no package for this version of Slicer. Use the newest Slicer, or an external Python."),
        ),
    ]


def _failure(failed: Exception) -> Outcome:
    output = getattr(failed, "output", None) or ""
    output = output.decode("utf-8", "backslashreplace") if isinstance(output, bytes) else str(output)
    last = [line.strip() for line in output.splitlines() if re.match(r"\s*(ERROR|error)\b", line)][-1:]
    reason = _("The installation failed: {reason}").format(reason=last[0] if last else failed)
    return Outcome(False, reason, explainPip(f"{output}\n{failed}"))


def _loaded() -> set[str]:
    """Plain names of the packages of which this program has loaded something."""
    top = {name.partition(".")[0] for name in list(sys.modules)}
    packages = importlib.metadata.packages_distributions()
    return {_plain(owner) for name, owners in packages.items() if name in top for owner in owners}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


_PROBE = """
import importlib.metadata as found, json, sys
versions = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        versions[name] = found.version(name)
    except found.PackageNotFoundError:
        versions[name] = None
print(json.dumps({"genseg-probe": versions}))
"""
