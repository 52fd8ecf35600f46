"""docs/extending.md: what it adds is added to a copy of the project, and its commands are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
from conftest import ROOT

from simsiam_tf.training import pretrain

TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = re.findall(r"^`([\w/.]+)`:\n\n```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
DIFFS = re.findall(r"^```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)


def test_what_the_document_adds_trains(tmp_path):
    project = tmp_path / "project"
    for name in ("simsiam_tf", "tests", "configs"):
        ignore = shutil.ignore_patterns("__pycache__", "fixtures")
        shutil.copytree(ROOT / name, project / name, ignore=ignore)
    for name in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / name, project)
    # The interpreter of the tests, whatever the shell finds by that name.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": "--numprocesses=0",
    }

    def run(command, **options):
        finished = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False,
            **options,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished

    for path, text in FILES:
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text(text)
    for diff in DIFFS:
        run(["git", "apply", "--verbose"], input=diff)
    assert (len(FILES), len(DIFFS), len(COMMANDS)) == (3, 2, 3)
    for command in COMMANDS:
        finished = run(["bash", "-euc", command])
    assert "epoch 1/1, step 2/2, loss" in finished.stderr
    assert (project / "runs" / "shapes" / "encoder" / "saved_model.pb").exists()


def test_the_callback_of_the_document_stops_a_run_whose_features_collapse(monkeypatch):
    (code,) = re.findall(r"^```python\n(import keras.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    found = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        pretrain, "run", lambda config, callbacks: found.append((config, callbacks))
    )
    exec(code, {})
    ((config, (callback,)),) = found
    assert config.system.workdir == "runs/watched"
    callback.set_model(keras.Model())
    for std, stopped in ((0.9, False), (0.2, True)):
        callback.model.stop_training = False
        callback.on_epoch_end(0, {"feature_std": std})
        assert callback.model.stop_training == stopped
