"""What Slicer lacks and how it is installed: with injected tools, nothing is ever installed here."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "HARM3Slicer"))

from HARM3SlicerLib import install, samples  # noqa: E402
from HARM3SlicerLib.install import Tools  # noqa: E402

from HARM3Logic.case import Case  # noqa: E402

SLICER = {"numpy": "2.4.6", "SimpleITK": "2.5.5", "requests": "2.34.2", "scipy": "1.17.1", "pillow": "12.2.0"}
ALL = {package.name: "9999.0" for package in install.requirements()} | SLICER


class Machine:
    """An environment with versions, and the tools that change it."""

    def __init__(self, installed: dict[str, str], answer: bool = True, broken: str = "", **tools: object) -> None:
        self.installed = dict(installed)
        self.asked: list[str] = []
        self.calls: list[tuple[list[str], str]] = []
        self.torch: list[str] = []
        self.stages: list[str] = []
        self.answer, self.broken = answer, broken
        self.tools = Tools(**{"confirm": self.confirm, "pipEnsure": self.pipEnsure, "installTorch": self.installTorch} | tools)

    def version(self, name: str) -> str | None:
        return self.installed.get(name)

    def confirm(self, text: str) -> bool:
        self.asked.append(text)
        return self.answer

    def pipEnsure(self, packages: list[str], constraints: Path, prompt_install: bool, requester: str, show_progress: bool = True) -> None:
        assert not prompt_install and requester == "HARM3Slicer"
        self.calls.append((packages, Path(constraints).read_text(encoding="utf-8")))
        if any(self.broken and package.startswith(self.broken) for package in packages):
            raise subprocess.CalledProcessError(1, ["pip", "install"])
        self.installed |= {package.partition(">=")[0]: package.partition(">=")[2] for package in packages}

    def installTorch(self, requirement: str) -> object:
        self.torch.append(requirement)
        if self.broken != "torch":
            self.installed |= {"torch": "2.9.0+cu128", "torchvision": "0.24.0+cu128"}
        return None

    def install(self) -> install.InstallOutcome:
        return install.install(tools=self.tools, onStage=self.stages.append, version=self.version)


def test_requirements_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib", reason="the standard library has it from Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [str(package) for package in install.requirements()] == project["dependencies"]
    assert set(install.DISK_MB) == {package.name for package in install.requirements()}


def test_missing_names_what_is_absent_or_too_old() -> None:
    have = ALL | {"monai": "1.3.2", "SimpleITK": "2.4.0rc2.dev368", "torch": "2.4+cpu"}
    del have["timm"]
    assert [(p.name, p.installed) for p in install.missing(have.get)] == [("monai", "1.3.2"), ("timm", None)]


def test_nothing_is_imported_to_find_out() -> None:
    code = (
        "import sys; sys.path.insert(0, 'HARM3Slicer'); from HARM3SlicerLib import install; install.missing(); install.constraints();"
        "print(*{'torch', 'monai', 'numpy', 'SimpleITK', 'openslide', 'pip', 'slicer'} & set(sys.modules))"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []


def test_ready_without_openslide_but_not_without_monai() -> None:
    assert install.ready({k: v for k, v in ALL.items() if not k.startswith("openslide")}.get)
    assert not install.ready({k: v for k, v in ALL.items() if k != "monai"}.get)


def test_the_question_says_what_how_big_where_and_how_to_remove() -> None:
    text = install.describe(install.missing(SLICER.get))
    size = sum(mb for name, mb in install.DISK_MB.items() if name not in (*SLICER, "torch", *install.OPTIONAL))
    for part in (
        "PyTorch extension",
        "2.6 GB",
        f"about {size} MB on disk",
        "optional, to read slides",
        "site-packages",
        "pip_uninstall",
        "Uninstall",
    ):
        assert part in text
    assert re.search(r"needs 13 Python packages", text)


def test_nothing_missing_asks_nothing() -> None:
    machine = Machine(ALL)
    assert machine.install().code == "nothing_missing" and not machine.asked and not machine.calls


def test_torch_comes_first_through_its_extension_and_then_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(SLICER)
    names = iter([{"numpy"}, {"numpy", "timm", "torch", "safetensors"}])
    monkeypatch.setattr(install, "_snapshot", lambda: next(names))
    done = machine.install()
    assert done.ok and done.code == "installed" and done.installed == ("safetensors", "timm", "torch")
    assert 'pip_uninstall("safetensors timm")' in done.advice and "PyTorch Utils" in done.advice
    assert machine.torch == [">=2.4"] and len(machine.asked) == 1
    (required, held), (optional, _) = machine.calls
    assert not any(package.startswith(("torch", "numpy", "openslide")) for package in required)
    assert optional == ["openslide-bin>=4.0.0.6", "openslide-python>=1.4"]
    assert held.splitlines()[:5] == [
        *("numpy==2.4.6", "SimpleITK==2.5.5", "requests==2.34.2"), "torch==2.9.0+cu128", "torchvision==0.24.0+cu128",
    ]  # fmt: skip
    assert "pillow==12.2.0" in held and "timm" not in held
    assert machine.stages == ["installing PyTorch", "installing Python packages", "installing openslide"]


def test_what_is_too_old_is_not_held_back() -> None:
    machine = Machine(ALL | {"pillow": "9.0"})
    assert machine.install().ok and machine.calls[0][0] == ["pillow>=10.2"] and "pillow" not in machine.calls[0][1]


def test_refused() -> None:
    machine = Machine(SLICER, answer=False)
    done = machine.install()
    assert (done.ok, done.code) == (False, "refused") and machine.installed == SLICER and not machine.torch


@pytest.mark.parametrize(
    ("machine", "code", "says"),
    [
        (Machine(SLICER, pipEnsure=None), "old_slicer", "5.12"),
        (Machine(SLICER, installTorch=None), "no_pytorch_extension", "PyTorch extension is not installed"),
        (Machine(ALL | {"SimpleITK": "2.3.1"}), "unsupported", "SimpleITK of this Slicer is 2.3.1; 2.4 or newer"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_asked(machine: Machine, code: str, says: str) -> None:
    done = machine.install()
    assert (done.ok, done.code) == (False, code) and says in done.message and done.advice and not machine.asked and not machine.calls


def test_a_mac_with_an_intel_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.sys, "platform", "darwin")
    monkeypatch.setattr(install.platform, "machine", lambda: "x86_64")
    assert Machine(SLICER).install().code == "unsupported"


def test_a_failure_leaves_a_sentence_an_advice_and_the_details() -> None:
    done = Machine(SLICER, broken="contourpy").install()
    assert (done.ok, done.code) == (False, "failed") and "returned non-zero exit status 1" in done.message
    assert "proxy" in done.advice and "CalledProcessError" in done.details


def test_torch_that_did_not_come_in_stops_the_rest() -> None:
    machine = Machine(SLICER, broken="torch")
    done = machine.install()
    assert done.code == "failed" and "without installing PyTorch" in done.message and not machine.calls


def test_openslide_is_optional() -> None:
    done = Machine(SLICER, broken="openslide").install()
    assert done.ok and "Slides cannot be read" in done.message and "CalledProcessError" in done.details


def test_testing_mode_installs_nothing_and_says_so() -> None:
    machine = Machine(SLICER, pipEnsure=lambda *a, **k: None, testing=True)
    assert machine.install().code == "skipped" and not machine.torch


def test_packages_that_are_still_missing_are_a_failure() -> None:
    done = Machine({k: v for k, v in ALL.items() if k != "timm"}, pipEnsure=lambda *a, **k: None).install()
    assert done.code == "failed" and "timm>=1.0.12 is still missing" in done.message


def test_a_whole_sample_case_is_used_again(tmp_path: Path) -> None:
    folder = samples.sampleFolder(tmp_path)
    assert samples.sampleCase(folder) is None and samples.sampleJob(folder) == {"kind": "phantom", "out": str(folder), "seed": 2024}
    made = folder / "PH-2024-0000"
    made.mkdir(parents=True)
    Case.from_files("phantom", {"t1_pre": made / "t1_pre.nrrd"}).write(made / "case.json")
    assert samples.sampleCase(folder) is None
    (made / "t1_pre.nrrd").touch()
    assert samples.sampleCase(folder) == made / "case.json"


def test_the_sample_button_calls_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    registered, loaded = {}, []
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **fields: registered.update(fields))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", module)
    assert samples.registerSampleData(lambda: loaded.append(1))
    registered["customDownloader"](object())
    assert loaded == [1] and Path(registered["thumbnailFileName"]).is_file()
    assert {type(registered[key]) for key in ("uris", "fileNames", "nodeNames")} == {str}  # lists of one length, or text
    monkeypatch.setitem(sys.modules, "SampleData", None)
    assert not samples.registerSampleData(lambda: None)
