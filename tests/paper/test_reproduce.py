"""`reproduce`, started as a user starts it."""

import html
import json
import re
import signal
from html.parser import HTMLParser

import pytest
from programs import Program
from run_results import wait_for_checkpoint

from simsiam_tf.paper import report, tables
from simsiam_tf.paper.settings import ReproduceConfig

PROGRAM = ["-m", "simsiam_tf.paper.reproduce"]
SMALL = (
    "--backbone=resnet10 --width=4 --epochs=1 --warmup_epochs=0 --log_every_steps=1 "
    "--checkpoint_every_steps=1"
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

    finished = program(*PROGRAM, *flags_of(tmp_path))
    assert finished.returncode == 1, finished.stderr
    assert "1 of 2 runs failed" in finished.stderr.splitlines()[-1]
    assert states_of(tmp_path) == ["finished", "failed"]
    assert "Restored" in (first / "programs.log").read_text()
    assert [one["program"] for one in starts_of(first)] == [
        "train.py", "train.py", "evaluate.py", "evaluate.py",
    ]  # fmt: skip
    (table,) = report_of(tmp_path)["tables"].values()
    assert table["verdict"] == "not decided"
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
    assert table["verdict"] != "not decided"
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
    assert list(found["tables"]) == list(tables.build_tables("imagenet"))
    assert {table["verdict"] for table in found["tables"].values()} == {"not decided"}


def test_mean_and_spread_are_computed_over_seeds():
    assert report.summarize([1.0, None, 3.0]) == {
        "mean": 2.0,
        "spread": pytest.approx(2**0.5),
        "count": 2,
    }
    assert report.summarize([None]) is None


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
