"""The benchmarks of the input pipeline and of the training step, run small."""

import json

import numpy as np
from PIL import Image


def sides_of(finished, output):
    assert finished.returncode == 0, finished.stderr
    result = json.loads(output.read_text())
    for side, row in result["sides"].items():
        assert len(result["values"][side]) == result["rounds"]
        assert row["lowest"] <= row["median"] <= row["highest"]
        assert row["peak MB"] > 50
        assert f"| {side} |" in finished.stdout
    return result["sides"]


def test_pipeline_beside_pillow_in_a_dataloader(program, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), np.uint8)
        Image.fromarray(image).save(photographs / f"{number}.jpeg")
    output = tmp_path / "pipeline.json"
    finished = program(
        "benchmarks/pipeline.py", f"--folder={photographs}", "--batch_size=4", "--batches=2",
        "--rounds=2", "--image_size=16", f"--output={output}",
    )  # fmt: skip
    sides = sides_of(finished, output)
    assert sides["Pillow, DataLoader"]["ratio"] == 1
    assert len(sides) == 4


def test_train_step_beside_pytorch(program, tmp_path):
    output = tmp_path / "step.json"
    finished = program(
        "benchmarks/train_step.py", "--backbone=resnet10", "--stem=cifar", "--image_size=16",
        "--batch_size=4", "--rounds=1", "--steps=1", "--sides=2", f"--output={output}",
    )  # fmt: skip
    assert list(sides_of(finished, output)) == ["PyTorch, eager", "ours"]
