"""The house: who may import whom, where each library lives, and what comes along when a package is imported."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Modules of HARM3Logic, low to high: each may import only those of lines above its own.
LAYERS = (
    ("errors", "writing", "progress"),
    ("case", "card"),
    ("cohort", "clinical_schema"),
    ("clinical",),
    ("cohort_rules",),
    ("grid",),
    ("image_file",),
    ("registration",),
    ("volume",),
    ("volume_quality",),
    ("stack", "geojson"),
    ("picture",),
    ("slide_view",),
    ("report",),  # of plain values: it knows nothing of models and predictions
    ("prediction",),
    ("tissue_folds",),
    ("tissue",),
    ("tiles",),
    ("slide_file",),
    ("tile_reader",),
    ("slide",),
    ("viewer",),
    ("device", "encoders", "stain"),
    ("encoder_weights", "foreign_encoder"),
    ("tile_encoder", "feature_file"),
    ("features", "feature_slide"),
    ("collection", "viewer_later"),
    ("check",),  # reads volumes, slides and features, and no model
    ("phantom_mri", "phantom_slide"),
    ("phantom_ct", "phantom"),
    ("phantom_gist",),
    ("batch",),
    ("preprocessing", "bag"),
    ("mri", "ct"),
    ("prepare", "familiarity"),
    ("models.output", "models.layers", "models.bags", "models.reference"),
    ("models.resnet3d", "models.ldvae", "models.vit3d", "models.tumour", "models.channels"),
    # every further model stands in this line: none imports another
    (
        "models.harm3_fusion",
        "models.ct_clinical",
        "models.mae3d",
        "models.c3d",
        "models.resnet3d_classifier",
        "models.rpnet3d",
        "models.clam",
        "models.transmil",
        "models.hmcat",
        "models.m2fusion",
    ),
    ("models.ensemble", "models.lora"),
    ("models",),
    ("checkpoint", "explain"),
    ("assemble", "import_weights"),
    ("predict",),
    ("predict_cohort",),
    ("job",),  # the worker's
    ("worker", "features_command", "predict_command"),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# The only places of the program that may import a library.
HOMES = {
    "SimpleITK": ("HARM3Logic/image_file.py", "HARM3Logic/registration.py", "HARM3Logic/volume.py"),
    "openslide": ("HARM3Logic/slide_file.py",),
    "timm": ("HARM3Logic/encoder_weights.py", "HARM3Logic/models/vit3d.py", "Training/optimisers.py"),
    "h5py": ("HARM3Logic/feature_file.py",),
    "torchstain": ("HARM3Logic/stain.py",),
    "onnxruntime": ("HARM3Logic/foreign_encoder.py",),
    "monai": ("HARM3Logic/models/",),
    "sklearn": ("Training/",),
    "pandas": ("Training/",),
    "peft": ("HARM3Logic/models/lora.py",),
    "jinja2": ("HARM3Logic/report.py", "Training/page.py"),
    "contourpy": ("HARM3Logic/report.py",),
    "lightning_fabric": ("Training/",),
    "smac": ("Training/optimise.py",),
    "ConfigSpace": ("Training/optimise.py",),
    "dask": ("Training/optimise.py", "Training/search.py"),
    "pydicom": ("HARM3Slicer/HARM3SlicerLib/series.py",),
    "tifffile": ("HARM3Logic/phantom_slide.py",),
}

OUTSIDE = {  # package to what it may never import
    "HARM3Logic": {"slicer", "qt", "ctk", "vtk", "Training", "HARM3Slicer", "Testing"},
    "Training": {"slicer", "qt", "ctk", "vtk", "HARM3Slicer", "Testing"},
    "HARM3Slicer": {"torch", "Training", "Testing"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name; a package has that of its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports anywhere, also within functions: modules, and for `from a import b` both a and a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module", "importlib.import_module"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def inner(path: Path) -> set[str]:
    """Modules of HARM3Logic a file imports, without the package's name."""
    names = {name.removeprefix("HARM3Logic.") for name in imports(path) if name.startswith("HARM3Logic.")}
    return {name for name in names if (ROOT / "HARM3Logic" / name.replace(".", "/")).with_suffix(".py").is_file() or name == "models"}


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c.py").write_text(
        "import x.y\nfrom ..d import e\nfrom . import f\nimport importlib\n"
        "def g():\n    from a import h\n    importlib.import_module('z')\n"
    )
    assert {"x.y", "a.d", "a.d.e", "a.b.f", "a.h", "z"} <= set(imports(tmp_path / "a/b/c.py"))


@pytest.mark.parametrize("package", OUTSIDE)
def test_packages_keep_to_themselves(package: str) -> None:
    found = {(module_name(path), name) for path in sources(package) for name in imports(path) if name.split(".")[0] in OUTSIDE[package]}
    assert not found


def test_slicer_needs_only_the_standard_library_of_ours() -> None:
    light = ("errors", "writing", "case", "card")
    found = {(module_name(path), name) for path in sources("HARM3Slicer") for name in inner(path) if name not in light}
    assert not found


def test_every_module_has_its_layer() -> None:
    names = {module_name(path).removeprefix("HARM3Logic.") for path in sources("HARM3Logic")} - {"HARM3Logic"}
    assert names == set(RANK)


@pytest.mark.parametrize("path", sources("HARM3Logic"), ids=module_name)
def test_a_module_imports_only_lower_ones(path: Path) -> None:
    own = RANK.get(module_name(path).removeprefix("HARM3Logic."), -1)  # the package itself imports none
    assert {name for name in inner(path) if RANK[name] >= own} == set()


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_its_home(library: str) -> None:
    users = {path for package in ("HARM3Logic", "Training", "HARM3Slicer") for path in sources(package)
             if any(name.split(".")[0] == library for name in imports(path))}  # fmt: skip
    strangers = [p for p in (path.relative_to(ROOT).as_posix() for path in users) if not p.startswith(HOMES[library])]
    assert not strangers


@pytest.mark.parametrize("module", ["HARM3Logic", *(f"HARM3Logic.{name}" for name in ("case", "card", "cohort", "worker", "__main__"))])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = "numpy torch scipy SimpleITK openslide timm monai PIL h5py matplotlib jaxtyping safetensors tifffile jinja2 sklearn pandas tqdm"
    code = f"import sys; before = set(sys.modules); import {module}; print(*({set(heavy.split())} & (set(sys.modules) - before)))"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("HARM3Logic.check, HARM3Logic.phantom, HARM3Logic.phantom_gist, HARM3Logic.viewer", "torch"),
        ("HARM3Logic.predict, HARM3Logic.predict_cohort", "torchvision timm monai matplotlib sklearn"),  # each costs seconds
    ],
)
def test_what_a_command_does_not_use_is_not_loaded(modules: str, absent: str) -> None:
    code = f"import sys; import {modules}; print(*({set(absent.split())} & set(sys.modules)))"
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == []


def test_packages_to_install_exist_and_are_all() -> None:
    tomllib = pytest.importorskip("tomllib", reason="the standard library has it from Python 3.11")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert [name for name in listed if not (ROOT / name.replace(".", "/")).is_dir()] == []
    ours = {module_name(path) for package in ("HARM3Logic", "Training") for path in sources(package) if path.name == "__init__.py"}
    assert ours <= set(listed)


def texts() -> Iterator[Path]:
    """The text files of the repository, as far as it is not made by a build or a run."""
    skipped = {".git", ".venv", "build", "dist", "demo", "runs", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in skipped and not name.endswith(".egg-info")]
        for name in files:
            path = Path(folder) / name
            if path.stat().st_size < 1 << 20 and b"\0" not in path.read_bytes()[:4096]:
                yield path


def test_no_file_knows_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.:/])/(?:home|root|work|Users|mnt|tmp)/\w|\b[A-Z]:\\\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found
