"""The results in the documents are those of the runs in docs/runs."""

import json
import tarfile

import pytest
from conftest import ROOT

from simsiam_tf.paper import markdown, report, tables
from simsiam_tf.paper.settings import ReproduceConfig


@pytest.fixture
def archived(tmp_path):
    """Unpacks the runs of a scale: its name → the content of their report.json."""

    def unpack(scale):
        with tarfile.open(ROOT / "docs" / "runs" / f"{scale}.tar.gz") as file:
            file.extractall(tmp_path, filter="data")
        return json.loads((tmp_path / scale / report.JSON).read_text())

    return unpack


@pytest.mark.parametrize(
    ("scale", "table", "document"), [("cifar10_small", tables.COMPARISON, "cifar10")]
)
def test_the_results_in_a_document_are_those_of_the_archived_runs(
    archived, scale, table, document, tmp_path
):
    written = archived(scale)
    workdir = str(tmp_path / scale)
    config = ReproduceConfig(table=table, scale=scale, seeds=written["seeds"], workdir=workdir)
    assert report.build_report(config)["tables"] == written["tables"]
    text = (ROOT / "docs" / f"{document}.md").read_text()
    assert markdown.with_results(text, written, f"{document}.png") == text


@pytest.mark.parametrize("method", ["simsiam", "simclr", "mocov2", "byol", "swav", "supervised"])
def test_a_flagfile_expects_what_the_archived_runs_reached(archived, method):
    (table,) = archived("cifar10_small")["tables"].values()
    (row,) = (row for row in table["rows"] if row["run"] in (method, f"{method}_100"))
    prefix = "" if method == "simsiam" else f"{method}_"
    flagfile = (ROOT / "configs" / f"{prefix}cifar10_small.cfg").read_text()
    comment = " ".join(flagfile.replace("#", " ").split())
    for name, words in (("knn", "kNN top-1"), ("probe", "probe")):
        reached = [seed[name] for seed in row["seeds"] if seed[name]]
        assert f"{words} {min(reached):.1f} to {max(reached):.1f} %" in comment
