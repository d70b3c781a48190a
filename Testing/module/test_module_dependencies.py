"""What is missing is said, asked for, installed by real pip, and Slicer's own packages stay what they are."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from GenSegSlicerLib import Dependencies as module
from GenSegSlicerLib.Dependencies import Dependencies, atLeast, explainPip, installedVersion, readRequirements
from GenSegSlicerLib.PipInstaller import InstallFailed, PipInstaller

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "GenSegSlicer" / "Resources" / "requirements.txt"
SLICER = {"numpy": "2.0.2", "SimpleITK": "2.5.0", "requests": "2.32.3", "pillow": "11.1.0", "pip": "26.1.1"}
ALL = SLICER | {"torch": "2.9.0+cu126", "monai": "1.6.1", "pydantic": "2.10", "rich": "13.0", "safetensors": "0.5"}
ALL |= {"diffusers": "0.35.0", "einops": "0.8.1", "scikit-image": "0.25.0", "typer": "0.19.0", "scipy": "1.15"}


class Machine:
    """A Python that is only a table of versions, with installers that write into it and note what they were told."""

    def __init__(self, versions: dict[str, str], **brings: str):
        self.versions, self.brings = dict(versions), brings
        self.asked, self.pip, self.torch, self.constraints = [], [], [], ""
        self.dependencies = Dependencies(REQUIREMENTS, self.versions.get)

    def ask(self, plan: str) -> bool:
        self.asked.append(plan)
        return True

    def installTorch(self, requirement: str) -> None:
        self.torch.append(requirement)
        self.versions["torch"] = self.brings.pop("torch", "2.9.0")

    def installPackages(self, requirements: list[str], constraints: Path) -> None:
        self.pip.append(requirements)
        self.constraints = constraints.read_text(encoding="ascii")
        self.versions |= {name: version for name, version in self.brings.items()}

    def install(self, **options):
        return self.dependencies.install(
            options.get("installer", self.installPackages),
            options.get("torchInstaller", self.installTorch),
            options.get("ask", self.ask),
            options.get("testing", False),
        )


PACKAGES = {
    name: ALL[name] for name in ("diffusers", "einops", "monai", "pydantic", "rich", "safetensors", "typer")
} | {"scikit-image": ALL["scikit-image"]}


def test_the_floors_are_those_of_the_backend():
    project = tomllib.loads((ROOT / "backend" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {name: floor for name, floor in (text.split(">=") for text in project["dependencies"])}
    assert {need.name: need.floor for need in Machine(ALL).dependencies.needs()} == wanted


def test_nothing_is_asked_or_done_where_all_is_there():
    machine = Machine(ALL)
    assert machine.dependencies.missing() == [] and machine.dependencies.planText() == ""
    assert machine.install() == module.Outcome(True)
    assert (machine.asked, machine.pip, machine.torch) == ([], [], [])


def test_the_plan_names_everything_with_its_size_and_source_before_anything_happens():
    machine = Machine(SLICER, **PACKAGES)
    plan = machine.dependencies.planText()
    for words in ("PyTorch 2.8 or newer", "GB", "monai", "scikit-image", "typer", "pypi.org", "numpy, SimpleITK, vtk"):
        assert words in plan
    with_scipy = Machine(SLICER | {"scipy": "1.15"}).dependencies.planText()
    sizes = [int(re.search(r"about (\d+) MB", text)[1]) for text in (plan, with_scipy)]
    assert sizes == [347, 204]


def test_what_is_missing_is_installed_torch_first_and_by_its_own_installer():
    machine = Machine(SLICER, **PACKAGES)
    assert machine.install().ok
    assert machine.torch == [">=2.8"] and len(machine.asked) == 1
    (packages,) = machine.pip
    assert sorted(packages) == [
        "diffusers>=0.32", "einops>=0.8", "monai>=1.6", "pydantic>=2.8", "rich>=13", "safetensors>=0.5",
        "scikit-image>=0.24", "typer>=0.19",
    ]  # fmt: skip
    assert machine.dependencies.missing() == []


def test_an_old_pytorch_is_replaced_with_what_belongs_to_it_but_only_together():
    machine = Machine(ALL | {"torch": "2.2.0", "torchvision": "0.17.0"})
    together = {"torch": "2.9.0", "torchvision": "0.24.0"}
    assert machine.install(torchInstaller=lambda requirement: machine.versions.update(together)).ok
    alone = Machine(ALL | {"monai": "1.5.2", "torchvision": "0.17.0"}, monai="1.6.1", torchvision="0.24.0").install()
    assert not alone.ok and "torchvision" in alone.reason


def test_only_what_is_missing_or_too_old_is_installed():
    machine = Machine(ALL | {"monai": "1.5.2", "torch": "2.8.0"}, monai="1.6.1")
    assert [need.requirement for need in machine.dependencies.missing()] == ["monai>=1.6"]
    assert machine.install().ok and machine.pip == [["monai>=1.6"]] and machine.torch == []


def test_pip_is_bound_to_leave_slicers_packages_and_torch_alone():
    machine = Machine({**ALL, "monai": "1.5"}, monai="1.6.1")
    machine.install()
    lines = machine.constraints.splitlines()
    for pinned in ("numpy==2.0.2", "SimpleITK==2.5.0", "requests==2.32.3", "torch==2.9.0+cu126", "scipy==1.15"):
        assert pinned in lines
    assert "vtk<0" in lines and "torchvision<0" in lines and not any(line.startswith("pydicom") for line in lines)
    assert not set(machine.dependencies.floors) & {re.split("[=<]", line)[0] for line in lines}


def test_a_refusal_starts_nothing_and_is_said():
    machine = Machine(SLICER)
    outcome = machine.install(ask=lambda plan: False)
    assert not outcome.ok and "declined" in outcome.reason
    assert machine.torch == machine.pip == []


def test_tests_of_slicer_install_nothing_and_are_asked_nothing():
    machine = Machine(SLICER)
    outcome = machine.install(testing=True)
    assert not outcome.ok and "monai" in outcome.reason
    assert machine.asked == machine.torch == machine.pip == []
    assert Machine(ALL).install(testing=True).ok


def test_without_the_pytorch_extension_the_way_to_it_is_said_and_nothing_is_installed():
    machine = Machine(SLICER)
    outcome = machine.install(torchInstaller=None)
    assert not outcome.ok and "Extensions Manager" in outcome.reason and machine.asked == machine.pip == []
    assert Machine({**ALL, "rich": "12"}, rich="13.9").install(torchInstaller=None).ok


@pytest.mark.parametrize("installed", [None, "2.5.1"])
def test_where_pytorch_was_not_installed_after_all_nothing_else_is(installed):
    machine = Machine(SLICER | ({"torch": installed} if installed else {}))
    outcome = machine.install(torchInstaller=lambda requirement: None)
    assert not outcome.ok and "PyTorch was not installed" in outcome.reason and machine.pip == []


@pytest.mark.parametrize(("name", "version"), [("numpy", "1.25.0"), ("numpy", None), ("SimpleITK", "2.3.1")])
def test_slicers_own_packages_are_never_replaced_even_when_too_old(name, version):
    versions = {key: value for key, value in ALL.items() if key != name} | ({name: version} if version else {})
    machine = Machine(versions)
    outcome = machine.install()
    assert not outcome.ok and name in outcome.reason and "newer Slicer" in outcome.reason
    assert machine.asked == machine.pip == []


def test_a_version_that_slicer_does_not_tell_is_trusted():
    assert Machine({**ALL, "SimpleITK": ""}).dependencies.missing() == []


def test_an_installer_that_claims_success_is_not_believed():
    outcome = Machine(SLICER | {"torch": "2.9"}).install(installer=lambda *_: None)
    assert not outcome.ok and "still missing" in outcome.reason and "monai>=1.6" in outcome.reason and outcome.restart


def test_a_changed_package_of_slicer_is_an_alarm():
    outcome = Machine({**ALL, "monai": "1.5"}, monai="1.6", numpy="2.4.0").install()
    assert not outcome.ok and "numpy" in outcome.reason and outcome.restart


def test_a_restart_is_advised_where_something_loaded_has_changed_and_only_then():
    loaded, fresh = "packaging", "monai"
    __import__(loaded)
    assert Machine({**ALL, "monai": "1.5", loaded: "1"}, monai="1.6", **{loaded: "2"}).install().restart
    assert not Machine({**ALL, fresh: "1.5"}, **{fresh: "1.6"}).install().restart


def test_a_failure_of_pip_is_told_with_its_last_error_and_advice():
    def fail(*_):
        output = (
            "Collecting monai\nERROR: Could not find\n  NewConnectionError: getaddrinfo failed\nERROR: No matching x"
        )
        raise subprocess.CalledProcessError(1, ["pip"], output=output)

    outcome = Machine(SLICER | {"torch": "2.9"}).install(installer=fail)
    assert not outcome.ok and "No matching x" in outcome.reason and "internet" in outcome.hints[0]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407'))", "HTTPS_PROXY"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] self-signed'))", "PIP_CERT"),
        ("[Errno -3] Temporary failure in name resolution", "internet"),
        ("ERROR: HTTP error 403 while getting https://files.pythonhosted.org/x.whl", "firewall"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: [WinError 5] Access is denied: 'c:\\\\slicer\\\\x.pyd'", "Restart Slicer"),
        ("ERROR: ResolutionImpossible: for help visit", "external Python"),
        ("ERROR: No matching distribution found for monai>=1.6", "newest Slicer"),
    ],
)
def test_what_pip_says_becomes_advice(output, words):
    assert any(words in hint for hint in explainPip(output))


def test_unknown_words_give_no_advice():
    assert explainPip("Successfully installed monai-1.6.1 in 1407 ms") == []


@pytest.mark.parametrize(
    ("version", "floor", "enough"),
    [
        ("1.6", "1.6", True), ("1.6.0", "1.6", True), ("1.10", "1.6", True), ("1.5.9", "1.6", False),
        ("2.9.0+cu126", "2.8", True), ("2.8.0+cpu", "2.8", True), ("1.6rc1", "1.6", False), ("1.6.dev3", "1.6", False),
        ("1.7.dev3", "1.6", True), ("1.6.post1", "1.6", True), ("13", "13", True), ("9", "13", False),
        ("odd", "1", False),
    ],
)  # fmt: skip
def test_versions_are_compared_as_pip_does(version, floor, enough):
    assert atLeast(version, floor) is enough
    packaging = pytest.importorskip("packaging.specifiers")
    if version != "odd":
        assert packaging.SpecifierSet(f">={floor}").contains(version, prereleases=True) is enough


def test_requirements_of_another_form_are_refused_and_options_skipped(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# words\n--index-url x\n\nscikit-image >= 0.24  # why\n")
    assert readRequirements(file) == [("scikit-image", "0.24")]
    for other in ("monai==1.6", "monai", "monai[all]>=1", "a>=1,<2"):
        file.write_text(other)
        with pytest.raises(ValueError, match="name>=version"):
            readRequirements(file)


def test_the_versions_of_this_very_python_are_read():
    assert installedVersion("numpy") == __import__("numpy").__version__
    assert installedVersion("no-such-package-anywhere") is None


# --- an external Python ---


def test_an_external_python_is_asked_and_nothing_is_ever_installed_there():
    asked = Dependencies(REQUIREMENTS)
    done = subprocess.run(asked.probeCommand(Path(sys.executable)), capture_output=True, text=True, check=True)
    external = Dependencies.ofProbe(REQUIREMENTS, "a banner\n" + done.stdout)
    assert external.pythonVersion == sys.version.split()[0]
    assert {need.name: need.installed or None for need in external.needs()} == {
        name: installedVersion(name) or None for name, _ in asked._wanted()
    }
    lacking = Dependencies.ofProbe(REQUIREMENTS, '{"genseg-probe": {"python": "3.12.1", "numpy": "2.0"}}')
    outcome = lacking.install(pytest.fail, pytest.fail, pytest.fail)
    assert not outcome.ok and "torch>=2.8" in outcome.reason and "lacks" in outcome.reason
    with pytest.raises(ValueError, match="does not answer"):
        Dependencies.ofProbe(REQUIREMENTS, "Segmentation fault")


# --- real pip, offline ---


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}/__init__.py", "")
        file.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


@pytest.fixture
def pip(tmp_path):
    """(installer, version): real pip of this Python, working on an empty environment that has numpy 2.0.2 only."""
    environment, wheels = tmp_path / "env ü", tmp_path / "wheels"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    wheels.mkdir()
    for version in ("2.0.2", "9.0"):
        wheel(wheels, "numpy", version)
    wheel(wheels, "vtk", "9.0")
    wheel(wheels, "modest", "1.0", "numpy>=1")
    wheel(wheels, "greedy", "1.0", "numpy>=9")
    wheel(wheels, "greedy", "0.5", "numpy>=1")
    wheel(wheels, "drawing", "1.0", "vtk")
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels.as_uri(), "PIP_PYTHON": str(python), "PIP_RETRIES": "0"}
    settings |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONUTF8": "1"}
    installer = PipInstaller(Path(sys.executable), {**os.environ, **settings})
    installer(["numpy==2.0.2"], Path(os.devnull))

    def version(name: str) -> str | None:
        code = f"import importlib.metadata as m\ntry: print(m.version('{name}'))\nexcept Exception: pass"
        return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip() or None

    return installer, version


def needing(tmp_path: Path, version, requirement: str) -> Dependencies:
    file = tmp_path / "requirements.txt"
    file.write_text(requirement)
    others = {"SimpleITK": "2.5", "torch": "2.9"}
    return Dependencies(file, lambda name: others.get(name) or version(name))


def test_real_pip_installs_what_is_asked_for_and_keeps_numpy(pip, tmp_path):
    installer, version = pip
    lines = []
    installer._onLine = lines.append
    outcome = needing(tmp_path, version, "modest>=1.0").install(installer, None, lambda plan: "modest" in plan)
    assert outcome.ok, outcome
    assert (version("modest"), version("numpy")) == ("1.0", "2.0.2")
    assert any("Successfully installed" in line for line in lines)


def test_real_pip_takes_an_older_package_rather_than_replace_numpy(pip, tmp_path):
    installer, version = pip
    assert needing(tmp_path, version, "greedy>=0.1").install(installer, None, lambda plan: True).ok
    assert (version("greedy"), version("numpy")) == ("0.5", "2.0.2")


@pytest.mark.parametrize("requirement", ["greedy>=1.0", "drawing>=1.0"])
def test_real_pip_refuses_what_would_bring_its_own_numpy_or_vtk(pip, tmp_path, requirement):
    installer, version = pip
    outcome = needing(tmp_path, version, requirement).install(installer, None, lambda plan: True)
    assert not outcome.ok and any("external Python" in hint for hint in outcome.hints), outcome
    assert (version("numpy"), version("vtk"), version("greedy"), version("drawing")) == ("2.0.2", None, None, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}, "internet"),
        ({"PIP_INDEX_URL": "https://127.0.0.1:9/simple", "PIP_PROXY": "http://127.0.0.1:9"}, "HTTPS_PROXY"),
    ],
)
def test_real_pip_without_a_network_is_explained(pip, tmp_path, settings, words):
    installer, version = pip
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        installer.environment.pop(name, None)
    installer.environment |= {"NO_PROXY": "", "no_proxy": "", "PIP_RETRIES": "1", **settings}
    outcome = needing(tmp_path, version, "modest>=1.0").install(installer, None, lambda plan: True)
    assert not outcome.ok and words in outcome.hints[0], outcome


def test_an_installation_can_be_called_off(tmp_path):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho $$\nexec sleep 60\n")
    slow.chmod(0o755)
    if os.name == "nt":
        pytest.skip("a shell script")
    said = []
    with pytest.raises(InstallFailed, match="called off") as failed:
        PipInstaller(slow, onLine=said.append, wait=lambda: not said)(["x"], tmp_path / "c")
    assert failed.value.output == said[0]
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[0]), 0)
