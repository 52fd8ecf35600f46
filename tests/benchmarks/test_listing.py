"""The benchmark of listing a folder runs, and its sides agree."""

import json

import pytest

# Whole benchmarks: no user runs them, and each takes a minute.
pytestmark = pytest.mark.long


def test_all_sides_list_the_same_images(new_program, tmp_path):
    output = tmp_path / "listing.json"
    finished = new_program(
        "benchmarks/listing.py", "--images=100000", "--folders=100", f"--parent={tmp_path}",
        f"--output={output}",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr + finished.stdout
    rows = json.loads(output.read_text())
    assert list(rows) == ["os.walk", "walk", "kept list"]
    assert {row["images"] for row in rows.values()} == {100_000}
    assert len({row["fingerprint"] for row in rows.values()}) == 1
    assert "\n| kept list | " in finished.stdout
    assert list(tmp_path.iterdir()) == [output]
