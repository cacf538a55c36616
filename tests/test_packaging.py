"""The wheel holds the four packages, their data and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.source import PACKAGES, ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from a copy: setuptools writes beside what it reads."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ZipFile(next(out.glob("tiller_lm-*.whl")))


def test_wheel_holds_the_four_packages_alone(wheel: ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_holds_every_file_of_a_package(wheel: ZipFile) -> None:
    """Code, the typing marks, prompts and shipped rewards: what is in the folders is in the wheel."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    wanted = {
        str(path.relative_to(ROOT)) for path in files if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= wanted


def test_console_command_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["tiller"].split(":")
    path = Path(ROOT, *module.split(".")).with_suffix(".py")
    assert f"def {function}(" in path.read_text()


def test_constraints_pin_every_core_dependency() -> None:
    """A clone made in a year must still install what was tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["train"]]
    assert {name_of(requirement) for requirement in wanted} <= pinned


def name_of(requirement: str) -> str:
    """Return the distribution's name of a requirement such as `torch>=2.6`."""
    return requirement.split(">")[0].split("=")[0].strip()
