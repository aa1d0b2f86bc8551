"""What pyproject.toml says is packaged is what the tree holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from stepwell import dictionary

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("engine", "adapters", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def folder_of(package: str) -> Path:
    """Where pyproject.toml says a package lies: below the folder of its topmost package."""
    top, *inner = package.split(".")
    return ROOT.joinpath(FOLDERS[top], *inner)


def packages_in_tree() -> set[str]:
    """The dotted name of every folder with Python sources below the source folders."""
    return {
        ".".join(source.parent.relative_to(ROOT / folder).parts)
        for folder in SOURCE_FOLDERS
        for source in (ROOT / folder).rglob("*.py")
    }


def test_packages_equal_the_tree() -> None:
    """A package that is in the tree is in the distribution, and the other way round."""
    assert set(PACKAGES) == packages_in_tree()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_whole(package: str) -> None:
    """Each package has its `__init__.py`, and the marker that makes type checkers read its types."""
    assert (folder_of(package) / "__init__.py").is_file()
    assert (folder_of(package) / "py.typed").is_file()


def test_typed_marker_is_packaged() -> None:
    """The marker goes into the wheel, for every package."""
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["*"]


def test_wheel_holds_the_dictionary(tmp_path: Path) -> None:
    """The wheel that is built from the tree has the dictionary, byte for byte, beside every module."""
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml builds with
    tree = tmp_path / "tree"
    for folder in SOURCE_FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, tree)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as built:
        assert built.read(f"stepwell/{dictionary.FILE.name}") == dictionary.load()
        sources = {
            str(path.relative_to(ROOT / folder)) for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")
        }
        assert sources <= set(built.namelist())


@pytest.mark.parametrize("name", [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]])
def test_named_files_exist(name: str) -> None:
    """The files that the distribution's metadata names are there."""
    assert (ROOT / name).is_file()
