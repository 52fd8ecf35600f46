"""The wheel, installed in an environment of its own and used far from the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_string

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

import simsiam_tf


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "project"  # a build leaves files in the folder that it builds
    for name in ("simsiam_tf", "configs", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    run(sys.executable, "-m", "build", "--wheel", f"--outdir={folder}", copy, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def run(*command, cwd, **environment):
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=variables | environment, timeout=300,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def test_the_wheel_has_every_file_of_the_package_and_every_recipe_and_nothing_else(wheel):
    files = [*(ROOT / "simsiam_tf").rglob("*.*"), *(ROOT / "configs").rglob("*.cfg")]
    paths = {path.relative_to(ROOT).as_posix() for path in files}
    paths = {path for path in paths if "__pycache__" not in path}
    expected = {path.replace("configs", "simsiam_tf/configs") for path in paths}
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
    assert found == expected


def requirements_of(name):
    """The requirements in a file and in the files that it names by -r."""
    path, found = ROOT / name, set()
    for line in path.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found |= requirements_of((path.parent / text[3:]).relative_to(ROOT))
        elif text:
            found.add(Requirement(text))
    return found


def test_the_wheel_requires_what_the_requirements_files_list(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        metadata = message_from_string(file.read(name).decode())
    assert metadata["Version"] == simsiam_tf.__version__
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    needed = {"": set()} | {extra: set() for extra in metadata.get_all("Provides-Extra")}
    for text in metadata.get_all("Requires-Dist"):
        package, _, condition = text.partition(";")
        needed[condition.partition('"')[2].strip(' "')].add(Requirement(package))
    assert needed.keys() == {"", "export", "detection", "interop", "formats", "track", "dev"}
    for extra, packages in needed.items():
        everything = extra in ("", "dev")
        name = f"requirements-{extra}.txt" if extra else "requirements.txt"
        assert requirements_of(name) == packages | (needed[""] if everything else set()), extra


def test_an_installed_wheel_trains_and_evaluates_by_the_names_of_its_recipes(
    wheel, tfds_dir, tmp_path
):
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    # This environment's packages stand for what pip would download; pip checks their versions.
    scripts, packages = environment / "bin", sysconfig.get_path("purelib")
    (there,) = environment.glob("lib/python*/site-packages")
    (there / "packages.pth").write_text(f"{packages}\n")
    run(scripts / "python", "-m", "pip", "install", "--no-index", wheel, cwd=tmp_path)
    settings = {"TFDS_DATA_DIR": str(tfds_dir)}
    run(
        scripts / "simsiam-train", "--recipe=digits", "--backbone=resnet10", "--width=4",
        "--epochs=1", "--warmup_epochs=0", "--workdir=mine", cwd=tmp_path, **settings,
    )  # fmt: skip
    assert (tmp_path / "mine" / "summary.json").exists()
    run(scripts / "simsiam-report", "mine", cwd=tmp_path)
    assert (tmp_path / "mine" / "report.html").exists()
    found = run(
        scripts / "simsiam-evaluate", "--encoder=mine/encoder", cwd=tmp_path, **settings
    ).stdout
    assert '"protocol": "knn"' in found
    where = run(
        scripts / "python", "-c", "import simsiam_tf; print(simsiam_tf.__file__)", cwd=tmp_path
    ).stdout
    assert str(environment) in where


@pytest.mark.parametrize(
    "name",
    ["train", "evaluate", "compare", "report", "inspect", "pack", "curves", "export",
     "import-torch", "export-torch", "export-detectron2", "detect", "reproduce"],
)  # fmt: skip
def test_every_program_of_the_wheel_exists(wheel, name):
    with zipfile.ZipFile(wheel) as file:
        (path,) = (path for path in file.namelist() if path.endswith("entry_points.txt"))
        lines = file.read(path).decode().splitlines()
    (target,) = (line.partition(" = ")[2] for line in lines if line.startswith(f"simsiam-{name} ="))
    module, _, function = target.partition(":")
    imported = __import__(module, fromlist=[function])
    assert callable(getattr(imported, function))
