"""The benchmarks of the input pipeline and of the training step run with small settings."""

import json

import numpy as np
import pytest
from PIL import Image

# Whole benchmarks: no user runs them, and each takes a minute.
pytestmark = pytest.mark.long


def sides_of(finished, output):
    assert finished.returncode == 0, finished.stderr
    result = json.loads(output.read_text())
    for side, row in result["sides"].items():
        assert len(result["values"][side]) == result["rounds"]
        assert row["lowest"] <= row["median"] <= row["highest"]
        assert row["peak MB"] > 50
        assert f"| {side} |" in finished.stdout
    return result["sides"]


def test_pipeline_is_compared_with_pillow_in_a_dataloader(new_program, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), np.uint8)
        Image.fromarray(image).save(photographs / f"{number}.jpeg")
    output = tmp_path / "pipeline.json"
    finished = new_program(
        "benchmarks/pipeline.py", f"--folder={photographs}", "--batch_size=4", "--batches=2",
        "--rounds=2", "--image_size=16", f"--output={output}",
    )  # fmt: skip
    sides = sides_of(finished, output)
    assert sides["Pillow, DataLoader"]["ratio"] == 1
    assert len(sides) == 4


TINY_STEP = [
    "--backbone=resnet10", "--stem=cifar", "--image_size=16", "--batch_size=4", "--rounds=1",
    "--steps=1",
]  # fmt: skip


def test_train_step_is_compared_with_the_fastest_form_of_pytorch(new_program, tmp_path):
    output = tmp_path / "step.json"
    wanted = ["PyTorch, eager", "PyTorch, channels last", "ours", "ours, XLA"]
    finished = new_program(
        "benchmarks/train_step.py", *TINY_STEP, f"--output={output}", "--sides", *wanted
    )
    sides = sides_of(finished, output)
    assert list(sides) == wanted
    fastest = max(wanted[:2], key=lambda side: sides[side]["median"])
    assert sides[fastest]["ratio"] == 1
    assert f"| ratio to {fastest} |" in finished.stdout


def test_without_a_peer_the_first_side_is_the_reference(new_program, tmp_path):
    output = tmp_path / "step.json"
    wanted = ["ours", "ours, bfloat16"]
    finished = new_program(
        "benchmarks/train_step.py", *TINY_STEP, f"--output={output}", "--sides", *wanted
    )
    sides = sides_of(finished, output)
    assert list(sides) == wanted
    assert sides["ours"]["ratio"] == 1
    assert "| ratio to ours |" in finished.stdout


def test_without_a_compiler_the_compiled_side_is_skipped_with_a_message(
    new_program, tmp_path, monkeypatch
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    output = tmp_path / "step.json"
    wanted = ["PyTorch, eager", "PyTorch, compiled"]
    finished = new_program(
        "benchmarks/train_step.py", *TINY_STEP, f"--output={output}", "--sides", *wanted
    )
    assert list(sides_of(finished, output)) == wanted[:1]
    assert "PyTorch, compiled: skipped, because there is no C++ compiler" in finished.stdout
