"""What the extension is built and published from: file lists, icon, catalogue entry, pictures."""

import json
import re
import shlex
import struct
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "HARM3Slicer"
RESOURCES = (".ui", ".png", ".txt", ".j2", ".json", ".safetensors")


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """Each command of a CMake file with its words."""
    text = re.sub(r"(?m)^\s*#.*$|(?<=\))\s*#.*$", "", path.read_text(encoding="utf-8"))
    return [(name, shlex.split(words)) for name, words in re.findall(r"(\w+)\(((?:\"[^\"]*\"|[^()\"])*)\)", text)]


def lists(path: Path) -> dict[str, list[str]]:
    """The variables a CMake file sets."""
    return {words[0]: words[1:] for name, words in commands(path) if name == "set"}


def files(folder: Path, base: Path, endings: tuple[str, ...]) -> list[str]:
    """Files of a folder by ending; screenshots are for the README and are not installed, and what is fetched is found when it is built."""
    found = (path.relative_to(base) for path in folder.rglob("*") if path.suffix in endings)
    return sorted(p.as_posix() for p in found if not {"__pycache__", "Screenshots", "vendor"} & set(p.parts) and p.name != "CMakeLists.txt")


LISTS = {  # variable to its CMake file's folder, the folder it lists and the endings
    "MODULE_PYTHON_SCRIPTS": (MODULE, MODULE, (".py",)),
    "MODULE_PYTHON_RESOURCES": (MODULE, MODULE, RESOURCES),
    "LOGIC_SCRIPTS": (ROOT, ROOT / "HARM3Logic", (".py",)),
    "LOGIC_RESOURCES": (ROOT, ROOT / "HARM3Logic", RESOURCES),
    "TRAINING_SCRIPTS": (ROOT, ROOT / "Training", (".py",)),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_file_is_listed(name: str) -> None:
    cmake, folder, endings = LISTS[name]
    listed, there = lists(cmake / "CMakeLists.txt")[name], files(folder, cmake, endings)
    assert sorted(set(there) - set(listed)) == [], "not listed in CMakeLists.txt"
    assert sorted(set(listed) - set(there)) == [], "listed in CMakeLists.txt, but not there"


def test_every_list_is_built() -> None:
    for folder, scripts in ((ROOT, {"LOGIC_SCRIPTS", "TRAINING_SCRIPTS"}), (MODULE, {"MODULE_PYTHON_SCRIPTS"})):
        built = [words for name, words in commands(folder / "CMakeLists.txt") if name == "slicerMacroBuildScriptedModule"]
        assert {words[words.index("SCRIPTS") + 1].strip("${}") for words in built} == scripts
        assert all("WITH_SUBDIR" not in words for words in built)  # paths are relative to qt-scripted-modules already
    named = [words[0] for name, words in commands(ROOT / "CMakeLists.txt") if name == "add_subdirectory"]
    assert named == ["HARM3Slicer"]


def test_the_module_has_generic_tests_and_its_own() -> None:
    cmake = commands(MODULE / "CMakeLists.txt")
    assert any(name == "slicerMacroBuildScriptedModule" and "WITH_GENERIC_TESTS" in words for name, words in cmake)
    assert ("slicer_add_python_unittest", ["SCRIPT", "${MODULE_NAME}.py"]) in cmake


def test_no_two_files_land_in_one_place() -> None:
    """The module's folder and the root are both emptied into qt-scripted-modules."""
    landed = [path for folder in (ROOT, MODULE) for name, paths in lists(folder / "CMakeLists.txt").items()
              if name.endswith(("SCRIPTS", "RESOURCES")) for path in paths]  # fmt: skip
    assert len(landed) == len(set(landed)) and "Resources/Models/harm3_fusion_demo.safetensors" in landed


def test_the_catalogue_entry_fits_the_extension() -> None:
    entry = json.loads((ROOT / "HARM3Slicer.json").read_text(encoding="utf-8"))
    said = lists(ROOT / "CMakeLists.txt")
    allowed = {"$schema", "build_dependencies", "build_subdirectory", "category", "enabled", "scm_revision", "scm_type", "scm_url", "tier"}
    assert set(entry) <= allowed and "catalog-entry-schema-v1.0.1" in entry["$schema"]
    assert entry["build_dependencies"] == said["EXTENSION_DEPENDS"] == ["PyTorch"]
    assert [entry["scm_url"]] == said["EXTENSION_HOMEPAGE"]
    assert entry["scm_url"].rpartition("/")[2].startswith("Slicer")  # a rule of the Extensions Index
    assert commands(ROOT / "CMakeLists.txt")[1] == ("project", ["HARM3Slicer"])  # which must be the name of the .json
    assert "not for clinical use" in said["EXTENSION_DESCRIPTION"][0]
    assert f'"{entry["category"]}"' in (MODULE / "HARM3Slicer.py").read_text(encoding="utf-8")


def test_published_pictures_are_in_the_repository() -> None:
    said = lists(ROOT / "CMakeLists.txt")
    urls = [*said["EXTENSION_ICONURL"], *said["EXTENSION_SCREENSHOTURLS"][0].split()]
    assert len(urls) == 3  # the icon and two screenshots
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (*(url.partition("/main/")[2] for url in urls), *re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)):
        assert (ROOT / path).is_file(), path


def test_icon_is_128_pixels_with_transparency() -> None:
    head = (MODULE / "Resources/Icons/HARM3Slicer.png").read_bytes()[:29]
    width, height, depth, kind = struct.unpack(">IIBB", head[16:26])
    assert (head[:8], width, height, depth, kind) == (b"\x89PNG\r\n\x1a\n", 128, 128, 8, 6)  # 6: RGBA


def test_the_wheel_holds_the_module() -> None:
    tomllib = pytest.importorskip("tomllib", reason="the standard library has it from Python 3.11")
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert {"HARM3Slicer", "HARM3Slicer.HARM3SlicerLib"} <= set(tool["packages"])
    shipped = {path for pattern in tool["package-data"]["HARM3Slicer"] for path in MODULE.glob(pattern)}
    assert {path.relative_to(MODULE).as_posix() for path in shipped} == set(files(MODULE, MODULE, RESOURCES))


def tree() -> dict[str, list[str]]:
    """The modules and folders that the README's tree names in each folder."""
    drawn = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is where")[2].split("```")[1]
    found, folder = dict[str, list[str]](), ""
    for line in drawn.strip().splitlines():
        if line.startswith("  "):
            found[folder] += re.split(r" {2,}", line.strip())[0].split()
        else:
            folder = line.split("/")[0]
            found[folder] = []
    return found


@pytest.mark.parametrize("package", ["HARM3Logic", "Training"])
def test_the_tree_of_the_readme_is_that_of_the_files(package: str) -> None:
    there = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    there |= {f"{path.parent.name}/" for path in (ROOT / package).glob("*/*") if path.suffix in (".py", ".json")}
    named = tree()[package]
    assert sorted(there - set(named)) == [], "not named in the README"
    assert sorted(set(named) - there) == [], "named in the README, but not there"
    assert len(named) == len(set(named))
