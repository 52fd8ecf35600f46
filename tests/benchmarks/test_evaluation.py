"""The benchmarks of the evaluation run with small settings."""

import json


def test_knn_is_compared_with_faiss_and_gives_its_votes(new_program, tmp_path):
    output = tmp_path / "knn.json"
    finished = new_program(
        "benchmarks/knn.py", "--bank=300", "--queries=40", "--features=16", "--k=7",
        "--repeats=2", f"--output={output}",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "\n| ours / faiss | " in finished.stdout
    result = json.loads(output.read_text())
    assert result["queries_whose_votes_differ"] == 0
    assert [len(seconds) for seconds in result["seconds"].values()] == [2, 2]


def test_probe_is_compared_with_the_linear_protocol_without_a_change_to_the_run(
    new_program, tiny_run, tmp_path
):
    output, there = tmp_path / "probe.json", sorted(tiny_run.rglob("*"))
    finished = new_program(
        "benchmarks/probe.py", f"--encoder={tiny_run / 'encoder'}",
        "--probe_flags=--probe_epochs=2",
        "--linear_flags=--batch_size=64 --epochs=1", "--repeats=1", f"--output={output}",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "\n| probe, cached | " in finished.stdout
    results = json.loads(output.read_text())["results"]
    assert list(results) == ["linear", "probe", "probe, cached"]
    (first,), (cached,) = results["probe"], results["probe, cached"]
    assert first["top1"] == cached["top1"]
    assert sorted(tiny_run.rglob("*")) == there
