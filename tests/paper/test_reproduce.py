"""`reproduce`, started as a user starts it."""

import html
import json
import os
import re
import shutil
import signal
from html.parser import HTMLParser

import pytest
import tensorflow as tf
from programs import Program
from run_results import wait_for_checkpoint

from simsiam_tf.paper import markdown, outcomes, programs, report, runner, tables
from simsiam_tf.paper.settings import ReproduceConfig
from simsiam_tf.schema import UserError

PROGRAM = ["-m", "simsiam_tf.paper.reproduce"]
SMALL = (
    "--backbone=resnet10 --width=4 --epochs=1 --warmup_epochs=0 --log_every_steps=1 "
    "--checkpoint_every_steps=1 --health_every_epochs=0"
)


def flags_of(workdir, **settings):
    settings = {"table": "stop_gradient", "run_flags": SMALL} | settings
    return [f"--{name}={value}" for name, value in settings.items()] + [f"--workdir={workdir}"]


def report_of(workdir):
    return json.loads((workdir / "report.json").read_text())


def states_of(workdir):
    (table,) = report_of(workdir)["tables"].values()
    return [one["state"] for row in table["rows"] for one in row["seeds"]]


def starts_of(folder):
    return [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]


class References(HTMLParser):
    """Collects the references of a page to other resources."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.found |= {named.get(name) for name in ("src", "href", "xlink:href", "data")} - {None}


def assert_self_contained(workdir):
    """Checks that the page shows every row and refers to nothing but its runs' files."""
    text = (workdir / "report.html").read_text()
    for reference in References(text).found:
        assert reference.startswith("#") or (workdir / reference).is_file()
    # The browser runs the two scripts of the page and no others, and loads nothing.
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="(.*?)"', text)
    sources = re.findall(r"(\S+-src) ([^;]*)", policy)
    assert [name for name, _ in sources] == ["default-src", "img-src", "style-src", "script-src"]
    assert dict(sources)["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-\S+' 'sha256-\S+'", dict(sources)["script-src"])
    page = re.sub("<script.*?</script>", "", text, flags=re.DOTALL)
    assert "@import" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    for name, table in report_of(workdir)["tables"].items():
        assert f'id="{name}"' in text
        for row in table["rows"]:
            assert f"{html.escape(row['label'])}</td>" in text


def test_a_dry_run_prints_every_run_once_with_its_cost_and_writes_nothing(program, tmp_path):
    finished = program(*PROGRAM, *flags_of(tmp_path / "w", table="predictor", seeds=2), "--dry_run")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 2 * 4 + 1
    for line in lines[:-1]:
        assert re.search(r"seed [01] +11 steps +1,408 images +unknown +not started$", line), line
    assert not (tmp_path / "w").exists()


def test_a_workdir_with_runs_of_another_scale_is_refused(program, tmp_path):
    folder = tmp_path / "no_stop_gradient" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "flags.cfg").write_text("--dataset=digits\n--epochs=1\n")
    finished = program(*PROGRAM, *flags_of(tmp_path, scale="cifar10"), "--dry_run")
    assert finished.returncode == 1
    assert "--dataset=digits there, cifar10 here" in finished.stderr.splitlines()[-1]


def test_a_table_is_completed_after_an_interruption_and_a_failed_row(program, tfds_dir, tmp_path):
    first, second = (tmp_path / run / "seed-0" for run in ("simsiam_decayed", "no_stop_gradient"))
    second.mkdir(parents=True)
    (second / "logs").touch()  # a file, so that the second row cannot make its folder

    process = Program(*PROGRAM, *flags_of(tmp_path), TFDS_DATA_DIR=str(tfds_dir))
    wait_for_checkpoint(process, first)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert (
        errors.strip()
        .splitlines()[-1]
        .startswith("reproduce.py: SIGTERM: stopped at simsiam_decayed, seed 0")
    )
    assert not (first / "summary.json").exists()

    finished = program(*PROGRAM, *flags_of(tmp_path), "--jobs=2")
    assert finished.returncode == 1, finished.stderr
    assert "1 of 2 runs failed" in finished.stderr.splitlines()[-1]
    assert states_of(tmp_path) == ["finished", "failed"]
    assert "Restored" in (first / "programs.log").read_text()
    assert [one["program"] for one in starts_of(first)] == [
        "train.py", "train.py", "evaluate.py", "evaluate.py",
    ]  # fmt: skip
    (table,) = report_of(tmp_path)["tables"].values()
    assert table["verdict"] == "undecided"
    text = (tmp_path / "report.html").read_text()
    assert "without, seed 0, failed: training: --workdir cannot be written to (" in text
    assert_self_contained(tmp_path)

    before = starts_of(first)
    (second / "logs").unlink()
    finished = program(*PROGRAM, *flags_of(tmp_path))
    assert finished.returncode == 0, finished.stderr
    assert states_of(tmp_path) == ["finished", "finished"]
    assert (tmp_path / "report.html").read_text().count('<div class="chart"') == 3
    assert starts_of(first) == before
    (table,) = report_of(tmp_path)["tables"].values()
    assert table["verdict"] == "undecided"
    assert "other epochs than the scale's: with stop-gradient, without" in table["reason"]
    for row in table["rows"]:
        assert row["probe"]["count"] == 1
        assert row["probe"]["spread"] is None
        assert 5 < row["knn"]["mean"] < 100
        assert row["knn_before_training"]["mean"] > 20
    assert_self_contained(tmp_path)


def test_a_report_before_the_first_run_shows_every_row(tmp_path):
    report.write(ReproduceConfig(table="all", scale="imagenet", workdir=str(tmp_path), seeds=3))
    assert_self_contained(tmp_path)
    found = report_of(tmp_path)
    assert list(found["tables"]) == list(tables.choose_tables("imagenet", "all"))
    assert found["tally"] == {"reproduced": 0, "contradicted": 0, "undecided": 12}


def test_the_time_of_a_row_is_that_of_its_finished_seeds(tmp_path):
    write_stop_gradient(tmp_path, seeds=2)
    report.write(ReproduceConfig(workdir=str(tmp_path), seeds=3))
    (table,) = report_of(tmp_path)["tables"].values()
    assert [row["seconds"]["mean"] for row in table["rows"]] == [60, 60]


def test_mean_spread_and_interval_are_computed_over_seeds():
    assert report.summarize([1.0, None, 3.0]) == {
        "mean": 2.0,
        "spread": pytest.approx(2**0.5),
        "half_width": pytest.approx(12.7062, rel=1e-4),  # Student's t with one degree of freedom
        "count": 2,
    }
    assert report.summarize([None]) is None


def test_the_interval_of_accuracies_has_the_error_of_the_test_images():
    # Three seeds that agree: what remains is the binomial error, 1.96 times 1.5 points.
    found = report.summarize([90.0] * 3, num_test=400)
    assert found["half_width"] == pytest.approx(1.95996 * 1.5, rel=1e-4)
    assert report.summarize([90.0], num_test=400)["half_width"] is None


def write_finished(folder, std):
    """Writes what a finished run of the digits' 20 epochs leaves, as far as a report reads it."""
    (folder / "encoder").mkdir(parents=True)
    start = {"program": "train.py", "seconds": 60.0, "ended": 1.0, "error": None}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    (folder / "encoder" / "encoder.json").write_text("{}")
    (folder / "flags.cfg").write_text("--epochs=20\n")
    lines = [
        {"step": 0, "epoch": 0, "knn_top1": 66.0},
        {"step": 220, "epoch": 20, "loss": -0.9, "feature_std": std},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for protocol in ("knn", "probe"):
        result = {"top1": 95.0, "num_test": 360, "misclassified": list(range(18))}
        (folder / f"results_{protocol}.json").write_text(json.dumps(result))


def test_a_result_stands_without_its_encoder_but_not_beside_a_newer_one(tmp_path):
    write_finished(tmp_path, std=0.98)
    assert outcomes.read_outcome(str(tmp_path)).state == "finished"
    os.utime(tmp_path / "encoder" / "encoder.json", (2e9, 2e9))
    assert outcomes.read_outcome(str(tmp_path)).state == "stopped"
    shutil.rmtree(tmp_path / "encoder")
    assert outcomes.read_outcome(str(tmp_path)).state == "finished"


def write_stop_gradient(workdir, seeds, **stds):
    for run, of_run in ({"simsiam_decayed": 0.98, "no_stop_gradient": 0.1} | stds).items():
        for seed in range(seeds):
            write_finished(workdir / run / f"seed-{seed}", of_run)


def test_a_finding_that_three_seeds_decide_needs_no_further_seeds(tmp_path):
    write_stop_gradient(tmp_path, seeds=3)
    config = ReproduceConfig(workdir=str(tmp_path), seeds=6)
    jobs = runner.list_jobs(config)
    assert len(jobs) == 12
    assert [(job.run, job.seed) for job in runner.needed(config, jobs)] == [
        (run, seed) for seed in range(3) for run in ("simsiam_decayed", "no_stop_gradient")
    ]
    runner.run(config)
    (table,) = report_of(tmp_path)["tables"].values()
    assert (table["verdict"], table["judged_seeds"]) == ("reproduced", 3)
    assert not (tmp_path / "simsiam_decayed" / "seed-3").exists()


def test_a_finding_that_three_seeds_leave_open_needs_all_seeds(tmp_path):
    write_stop_gradient(tmp_path, seeds=2)
    for seed, std in ((0, 0.1), (1, 0.5), (2, 0.29)):
        shutil.rmtree(tmp_path / "no_stop_gradient" / f"seed-{seed}", ignore_errors=True)
        write_finished(tmp_path / "no_stop_gradient" / f"seed-{seed}", std)
    config = ReproduceConfig(workdir=str(tmp_path), seeds=4)
    assert len(runner.needed(config, runner.list_jobs(config))) == 8


def test_two_processes_on_one_workdir_share_the_rows(tmp_path):
    flags = flags_of(tmp_path, run_flags=f"{SMALL} --knn_every_epochs=0")
    both = [Program(*PROGRAM, *flags) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
    assert states_of(tmp_path) == ["finished", "finished"]
    for run in ("simsiam_decayed", "no_stop_gradient"):
        folder = tmp_path / run / "seed-0"
        assert [one["program"] for one in starts_of(folder)] == [
            "train.py", "evaluate.py", "evaluate.py",
        ]  # fmt: skip
        assert not (folder / "reproduce.lock").exists()


def test_runs_at_a_time_divide_the_cores_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    assert [share.cores for share in programs.shares(2)] == [{0, 2}, {1, 5}]
    assert programs.shares(1) == [programs.Share()]
    assert programs.shares(5) == [programs.Share()] * 5  # more runs than cores


def test_runs_at_a_time_divide_the_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["gpu"] * 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [share.gpus for share in programs.shares(2)] == [("0", "2"), ("1", "3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert [share.gpus for share in programs.shares(4)] == [("4",), ("5",), ("6",), ("7",)]
    with pytest.raises(UserError, match="at most 4, the number of GPUs"):
        programs.shares(5)


def test_a_document_gets_the_results_between_its_comments(tmp_path):
    write_stop_gradient(tmp_path, seeds=3)
    report.write(ReproduceConfig(workdir=str(tmp_path), seeds=3))
    document = tmp_path / "paper.md"
    document.write_text(f"# Title\n\n{markdown.BEGIN}\nold\n{markdown.END}\nThe end.\n")
    markdown.write(str(tmp_path / "report.json"), str(document))
    text = document.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\nThe end.\n")
    assert "\nold\n" not in text
    assert "Of 1 finding: 1 reproduced, 0 contradicted, 0 undecided." in text
    assert "| without: collapses | +0.20 ± 0.00 std | holds |  |" in text
    assert (
        "| without | 0.1 | 95.0 ± 2.3 | 95.0 ± 2.3 | 0.10 ± 0.00 | −0.90 ± 0.00 | – | 01:00 | 3 |"
        in text
    )
    assert (tmp_path / "paper.png").read_bytes().startswith(b"\x89PNG")


def test_a_document_names_the_tables_that_are_not_finished(tmp_path):
    write_stop_gradient(tmp_path, seeds=1)
    report.write(ReproduceConfig(table="all", workdir=str(tmp_path), seeds=3))
    text = markdown.results(report_of(tmp_path), "paper.png")
    assert re.findall("^### (.*):", text, re.MULTILINE) == ["Stop-gradient"]
    assert "Tables that have a row without a finished run: Predictor, Batch size, " in text


def test_a_document_without_a_place_for_the_results_is_refused(tmp_path):
    report.write(ReproduceConfig(workdir=str(tmp_path)))
    (tmp_path / "paper.md").write_text("nothing")
    with pytest.raises(UserError, match="--output must have the lines"):
        markdown.write(str(tmp_path / "report.json"), str(tmp_path / "paper.md"))


def test_an_unwritable_workdir_ends_the_program_with_one_line(program, tmp_path):
    (tmp_path / "file").touch()
    finished = program(*PROGRAM, *flags_of(tmp_path / "file"))
    assert finished.returncode == 1
    assert "--workdir cannot be written to" in finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"table": "other"}, ["--table", "stop_gradient"]),
        ({"run_flags": "--momentum=2"}, ["--momentum", "below 1"]),
        ({"run_flags": "--epochs='1"}, ["--run_flags", "No closing quotation"]),
    ],
)
def test_a_wrong_flag_ends_the_program_with_one_line(program, tmp_path, settings, words):
    finished = program(*PROGRAM, *flags_of(tmp_path, **settings))
    assert finished.returncode in (1, 2)
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in finished.stderr.splitlines()[-1]
