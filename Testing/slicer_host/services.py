"""`slicer.packaging`, `slicer.i18n` and `SampleData`: calls are noted, nothing is installed or downloaded."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
from packaging.requirements import Requirement

pip_calls: list[tuple[str, Any, dict[str, Any]]] = []
pip_refuses = pip_fails = False  # the user says no; pip ends with an error


def _check(requirements: Any) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    for requirement in requirements if isinstance(requirements, list | tuple) else [requirements]:
        wanted = requirement if isinstance(requirement, Requirement) else Requirement(requirement)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                return False
        except PackageNotFoundError:
            return False
    return True


def _load_requirements(path: str | Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def _ensure(
    requirements: Any,
    constraints: Any = None,
    skip_packages: Any = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> None:
    if skip_in_testing and slicer.app.testingEnabled():
        return
    listed = requirements if isinstance(requirements, list | tuple) else [requirements]
    missing = [r for r in listed if not _check(r)]
    if missing and prompt_install and pip_refuses:
        raise RuntimeError("User declined package installation")
    if missing:
        _install(missing, constraints=constraints, requester=requester)


def _install(requirements: Any, **options: Any) -> None:
    import subprocess

    pip_calls.append(("pip_install", requirements, options))
    if pip_fails:
        raise subprocess.CalledProcessError(1, ["pip", "install"])


def _uninstall(requirements: Any, **options: Any) -> None:
    pip_calls.append(("pip_uninstall", requirements, options))


def packaging_module() -> ModuleType:
    module = ModuleType("slicer.packaging")
    module.load_requirements = _load_requirements
    module.pip_check, module.pip_ensure, module.pip_install, module.pip_uninstall = _check, _ensure, _install, _uninstall
    module.isPipInstallInProgress = lambda: False
    return module


def i18n_module() -> ModuleType:
    module = ModuleType("slicer.i18n")
    module.tr = lambda text: slicer.app.translate("", text)
    module.translate = lambda context, text: slicer.app.translate(context, text)
    module.getContext = lambda source: Path(source).stem
    return module


@dataclass
class SampleDataSource:
    sampleName: str
    uris: Any
    fileNames: Any = None
    nodeNames: Any = None
    checksums: Any = None
    customDownloader: Any = None
    thumbnailFileName: Any = None
    category: str = "Custom"


class SampleDataLogic:
    """Registered sources, and `downloadSample`, which never asks a custom downloader."""

    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str) -> None:
        slicer.modules.sampleDataSources.setdefault(category, [])

    @staticmethod
    def registerCustomSampleDataSource(
        category: str = "Custom",
        sampleName: str | None = None,
        uris: Any = None,
        fileNames: Any = None,
        nodeNames: Any = None,
        customDownloader: Any = None,
        thumbnailFileName: Any = None,
        loadFileTypes: Any = None,
        loadFiles: Any = None,
        loadFileProperties: Any = None,
        checksums: Any = None,
    ) -> None:
        if uris is None:
            raise TypeError("object of type 'NoneType' has no len()")
        if thumbnailFileName is not None and not Path(thumbnailFileName).is_file():
            raise FileNotFoundError(thumbnailFileName)
        listed = [[x] if isinstance(x, str) or x is None else list(x) for x in (uris, fileNames, nodeNames)]
        source = SampleDataSource(sampleName or "", *listed, checksums, customDownloader, thumbnailFileName, category)
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)

    def sourceForSampleName(self, name: str) -> SampleDataSource | None:
        sources = (s for listed in slicer.modules.sampleDataSources.values() for s in listed)
        return next((s for s in sources if s.sampleName == name), None)

    def downloadSample(self, name: str) -> Any:
        source = self.sourceForSampleName(name)
        if source is None:
            raise ValueError(f"sample {name!r} is not registered")
        nodes = [slicer.util.loadVolume(uri.removeprefix("file://")) for uri in source.uris if uri.startswith("file://")]
        return nodes[0]  # IndexError for a sample that is only generated


def press_sample_button(name: str) -> Any:
    """What the thumbnail's button does: it calls the custom downloader and nothing else."""
    source = SampleDataLogic().sourceForSampleName(name)
    return source.customDownloader(source)


def sample_data_module() -> ModuleType:
    module = ModuleType("SampleData")
    module.SampleDataLogic, module.SampleDataSource = SampleDataLogic, SampleDataSource
    module.downloadSample = lambda name: SampleDataLogic().downloadSample(name)
    return module
