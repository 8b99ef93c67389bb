"""The wheel has all that the package reads, and trains where nothing of the checkout is near."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prunetrain.training import recipes

TOP = Path(__file__).parent.parent

pytest.importorskip("hatchling", reason="the build backend is not installed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    (path,) = folder.glob("prunetrain-*-py3-none-any.whl")
    return path


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (info,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "prunetrain = prunetrain.commands:main" in archive.read(info).decode()
    package = {path.relative_to(TOP).as_posix() for path in (TOP / "prunetrain").rglob("*") if path.suffix != ".pyc" and path.is_file()}
    templates = {f"prunetrain/templates/{path.name}" for path in (TOP / "templates").iterdir()}
    assert names == package | templates
    assert {"prunetrain/py.typed", "prunetrain/training/data/digits.npz", "prunetrain/templates/network.py.jinja"} <= names
    assert {f"prunetrain/training/recipes/{name}.toml" for name in recipes.names()} <= names


def test_trains_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import prunetrain; from prunetrain.commands import main; print(prunetrain.__file__); main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs", "1", "--model", "lenet-300-100"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(tmp_path / "site" / "prunetrain"))
    assert (tmp_path / "generated_nets" / "lenet-300-100-digits" / "epoch_001.py").exists()
