"""The files around the package: the Dockerfile, the citation, the change log."""

import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import ROOT

import simsiam_tf


def test_the_linter_has_nothing_to_say_of_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    finished = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr


def test_the_linter_sees_a_wrong_instruction(tmp_path):
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    with open(tmp_path / "Dockerfile", "a") as file:
        file.write("RUNS pip install x\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    finished = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, check=False)
    assert finished.returncode != 0


def test_what_the_dockerfile_copies_exists():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    sources = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert len(sources) == 2
    for source in sources:
        assert (ROOT / source).exists(), source


def test_citation_and_change_log_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation.keys() >= {"title", "message", "authors", "version"}
    assert citation["version"] == simsiam_tf.__version__
    assert f"## {simsiam_tf.__version__}" in (ROOT / "CHANGELOG.md").read_text()
