"""The Python packages the worker needs: which are missing in this Slicer, how big they are, how they come in and how they go.

Nothing is imported to find out (a package that is there may still crash Slicer), nothing is installed before the user agreed, and
nothing that is already installed changes its version.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
OPTIONAL = ("openslide-bin", "openslide-python")
SLICERS_OWN = ("numpy", "SimpleITK", "requests")  # Slicer and its other extensions are built on these versions
DISK_MB = {  # measured on Linux with the versions of 2026, torch without CUDA estimated; timm with torchvision and what they bring
    "SimpleITK": 274,
    "contourpy": 1,
    "h5py": 16,
    "imagecodecs": 82,
    "jaxtyping": 1,
    "jinja2": 1,
    "monai": 7,
    "numpy": 57,
    "openslide-bin": 7,
    "openslide-python": 1,
    "pillow": 20,
    "safetensors": 2,
    "scipy": 114,
    "tifffile": 1,
    "timm": 55,
    "torch": 900,
    "tqdm": 1,
}
TORCH_SIZE = "0.2 GB to download and 0.9 GB on disk without a GPU, 2.6 GB and 5.3 GB with one"
_LINE = re.compile(r"([A-Za-z0-9._-]+)(?:>=([0-9.]+))?")

Version = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Requirement:
    """A package the worker needs; `installed` is its version here, if it has one that is too old."""

    name: str
    minimum: str
    installed: str | None = None

    @property
    def optional(self) -> bool:
        return self.name in OPTIONAL

    def __str__(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name


@dataclass(frozen=True)
class InstallOutcome:
    """How an installation ended.

    Args:
        code: nothing_missing, installed, refused, skipped (testing mode), old_slicer, no_pytorch_extension, unsupported or failed.
        message: one sentence for the user; `advice` the next one.
        details: traceback or log, for "Copy details".
        installed: names of the packages that came in, those they brought along included.
    """

    ok: bool
    code: str
    message: str
    advice: str = ""
    details: str = ""
    installed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tools:
    """What Slicer offers for installing.

    Args:
        confirm: asks the user, gives their answer.
        pipEnsure: `slicer.packaging.pip_ensure`; None in a Slicer that has none.
        installTorch: takes a version requirement; None without the PyTorch extension.
    """

    confirm: Callable[[str], bool]
    pipEnsure: Callable[..., object] | None
    installTorch: Callable[[str], object] | None
    testing: bool = False


def requirements(path: Path = REQUIREMENTS) -> list[Requirement]:
    """All packages the worker needs."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    matches = [_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    return [Requirement(m[1], m[2] or "") for m in matches if m]


def installedVersion(name: str) -> str | None:
    """The version of an installed package, None without one; imports nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(version: Version = installedVersion) -> list[Requirement]:
    """The packages that are absent or too old, the optional ones included."""
    found = []
    for wanted in requirements():
        have = version(wanted.name)
        if have is None or _numbers(have) < _numbers(wanted.minimum):
            found.append(Requirement(wanted.name, wanted.minimum, have))
    return found


def ready(version: Version = installedVersion) -> bool:
    """Whether the worker can run; slides may still need an optional package."""
    return all(package.optional for package in missing(version))


def describe(packages: Iterable[Requirement]) -> str:
    """What would be installed, how big it is, where it goes and how to remove it, as the text of a question."""
    packages = list(packages)
    if not packages:
        return "All Python packages HARM3Slicer needs are installed."
    byPip = [p for p in packages if p.name != "torch" and not p.optional]
    optional = [p for p in packages if p.optional]
    count = f"{len(packages)} Python package{'s' if len(packages) > 1 else ''}"
    lines = [f"HARM3Slicer needs {count} that this Slicer does not have:", ""]
    if len(byPip) + len(optional) < len(packages):
        lines.append(f"- PyTorch, through the PyTorch extension ({TORCH_SIZE})")
    if byPip:
        lines.append(f"- {', '.join(p.name for p in byPip)} (about {sum(DISK_MB[p.name] for p in byPip)} MB on disk)")
    if optional:
        size = sum(DISK_MB[p.name] for p in optional)
        lines.append(f"- optional, to read slides: {', '.join(p.name for p in optional)} (about {size} MB)")
    return "\n".join(
        [
            *lines,
            "",
            f"They are downloaded from the internet into {sysconfig.get_paths()['purelib']}, which takes some minutes. "
            "Packages that are already there keep their versions, and nothing else on this computer changes.",
            "",
            removal(p.name for p in packages),
        ]
    )


def removal(names: Iterable[str]) -> str:
    """How to remove packages again."""
    others = [name for name in names if name not in ("torch", "torchvision")]
    torch = "PyTorch: module PyTorch Utils, Uninstall."
    if not others:
        return f"To remove it later: {torch}"
    return f'To remove them later: in the Python console, slicer.packaging.pip_uninstall("{" ".join(others)}"). {torch}'


def constraints(version: Version = installedVersion) -> str:
    """The text of a pip constraints file that holds everything of ours and of Slicer at its installed version."""
    names = dict.fromkeys([*SLICERS_OWN, "torch", "torchvision", *(wanted.name for wanted in requirements())])
    old = {package.name for package in missing(version)}
    pinned = [(name, version(name)) for name in names if name not in old]
    return "".join(f"{name}=={have}\n" for name, have in pinned if have)


def slicerTools(parent: object = None) -> Tools:
    """The tools of the running Slicer; `parent` is the window that asks."""
    import slicer

    try:
        from slicer.packaging import pip_ensure as pipEnsure
    except ImportError:  # Slicer before 5.12
        pipEnsure = None

    def confirm(text: str) -> bool:
        return bool(slicer.util.confirmOkCancelDisplay(text, "HARM3Slicer - Install Python packages", parent=parent))

    def installTorch(requirement: str) -> object:
        from PyTorchUtils import PyTorchUtilsLogic

        return PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=requirement)

    hasExtension = hasattr(slicer.modules, "pytorchutils")
    return Tools(confirm, pipEnsure, installTorch if hasExtension else None, bool(slicer.app.testingEnabled()))


def install(
    parent: object = None,
    onStage: Callable[[str], None] = lambda text: None,
    tools: Tools | None = None,
    version: Version = installedVersion,
) -> InstallOutcome:
    """Ask the user and install what is missing; never raises.

    Args:
        parent: window of the question.
        onStage: told what is being done, for the stage text.
        tools: what to install with; None takes Slicer's.
    """
    wanted = missing(version)
    if not wanted:
        return InstallOutcome(True, "nothing_missing", "All Python packages are installed.")
    tools = tools or slicerTools(parent)
    if refusal := _impossible(wanted, tools):
        return refusal
    if not tools.confirm(describe(wanted)):
        return InstallOutcome(False, "refused", "The Python packages were not installed.", "Press the button again to install them.")
    before = _snapshot()
    try:
        note = _installAll(wanted, tools, onStage, version)
    except Exception as error:  # pip, the network and another extension: anything may come
        return _failed(f"Installing the Python packages failed ({_line(error)}).", traceback.format_exc())
    importlib.invalidate_caches()
    still = [str(package) for package in missing(version) if not package.optional]
    if still and tools.testing:
        return InstallOutcome(False, "skipped", "Slicer is in testing mode and installs nothing.", "Start Slicer without --testing.")
    if still:
        return _failed(f"After the installation {', '.join(still)} {'is' if len(still) == 1 else 'are'} still missing.", note)
    new = tuple(sorted(_snapshot() - before))
    message = "The Python packages are installed." + (" Slides cannot be read: openslide did not come in." if note else "")
    return InstallOutcome(True, "installed", message, removal(new or [p.name for p in wanted]), note, new)


def _impossible(wanted: list[Requirement], tools: Tools) -> InstallOutcome | None:
    """Why the installation need not be tried."""
    needsTorch = any(package.name == "torch" for package in wanted)
    old = next((package for package in wanted if package.name in SLICERS_OWN and package.installed), None)
    if old:
        message = f"{old.name} of this Slicer is {old.installed}; {old.minimum} or newer is wanted, and other extensions need Slicer's."
        return InstallOutcome(False, "unsupported", message, "Use Slicer 5.12 or newer.")
    if needsTorch and sys.platform == "darwin" and platform.machine() == "x86_64":
        message = "PyTorch newer than 2.2 does not exist for this Slicer, which is built for Intel Macs; 2.4 or newer is wanted."
        return InstallOutcome(False, "unsupported", message, "Use Slicer on Linux or Windows.")
    if tools.pipEnsure is None:
        message = "This Slicer has no package installer (slicer.packaging); Slicer 5.12 or newer is wanted."
        return InstallOutcome(False, "old_slicer", message, "Install a newer Slicer.")
    if needsTorch and tools.installTorch is None:
        message = "The PyTorch extension is not installed; it brings the PyTorch that fits this computer."
        advice = 'Open the Extensions Manager, install "PyTorch", restart Slicer and try again.'
        return InstallOutcome(False, "no_pytorch_extension", message, advice)
    return None


def _installAll(wanted: list[Requirement], tools: Tools, onStage: Callable[[str], None], version: Version) -> str:
    """Install torch, then the rest beside it; what went wrong with optional packages is returned."""
    torch = next((package for package in wanted if package.name == "torch"), None)
    if torch and tools.installTorch and not tools.testing:
        onStage("installing PyTorch")
        tools.installTorch(f">={torch.minimum}")
        importlib.invalidate_caches()
        if version("torch") is None:
            raise RuntimeError("the PyTorch extension ended without installing PyTorch")
    with tempfile.TemporaryDirectory(prefix="harm3_") as folder:
        held = Path(folder, "constraints.txt")
        held.write_text(constraints(version), encoding="utf-8")  # after torch came in, so that it stays as it is
        common = {"constraints": held, "prompt_install": False, "requester": "HARM3Slicer"}
        required = [str(package) for package in wanted if package.name != "torch" and not package.optional]
        if required:
            onStage("installing Python packages")
            tools.pipEnsure(required, **common)
        if optional := [str(package) for package in wanted if package.optional]:
            onStage("installing openslide")
            try:
                tools.pipEnsure(optional, show_progress=False, **common)
            except Exception:  # not available for every system; told in the outcome
                return traceback.format_exc()
    return ""


def _failed(message: str, details: str) -> InstallOutcome:
    advice = "Check the internet connection (or proxy) and the free disk space, then try again; the details say more."
    return InstallOutcome(False, "failed", message, advice, details)


def _snapshot() -> set[str]:
    """Names of all installed packages."""
    importlib.invalidate_caches()
    return {name.lower() for dist in importlib.metadata.distributions() if (name := dist.metadata["Name"])}


def _line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _numbers(version: str) -> tuple[int, ...]:
    """The release of a version; what follows it (rc1, .dev3, +cpu) does not count, as Slicer's own builds carry such marks."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
