"""The report on a run: its content, and how a real browser shows it."""

import html
import json
import os
import re
import shutil

import browser
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.summary.summary_iterator import summary_iterator

from simsiam_tf.paper import report as paper_report
from simsiam_tf.paper.settings import ReproduceConfig
from simsiam_tf.reporting import page, pictures, record

LONG = "a_folder_whose_name_has_no_end_" * 8
RESULT = {
    "protocol": "probe",
    "top1": 100 * 354 / 360,
    "top5": 99.5,
    "dataset": "digits",
    "num_test": 360,
}
WARNING = f"W1122 09:09:14.984443 139678286556032 monitors.py:1] Lost <b>{LONG}</b>\n"


@pytest.fixture(scope="module")
def run(program, tiny_run, tfds_dir, tmp_path_factory):
    """The workdir of a finished run with a result, a warning and long names."""
    workdir = tmp_path_factory.mktemp("report") / "<i>&run"
    shutil.copytree(tiny_run, workdir)
    set_flags(workdir, data_dir=tfds_dir, knn_dataset=LONG)
    (workdir / "results-probe.json").write_text(json.dumps(RESULT))
    with open(workdir / "logs" / "worker-0.log", "a") as file:
        file.write(WARNING)
    return workdir


@pytest.fixture(scope="module")
def report(program, run):
    """The page of that run."""
    finished = program("-m", "simsiam_tf.report", run)
    assert finished.returncode == 0, finished.stderr
    return run / "report.html"


def set_flags(workdir, **settings):
    path = workdir / "flags.cfg"
    text = path.read_text()
    for name, value in settings.items():
        text = re.sub(f"--{name}=.*", f"--{name}={value}", text)
    path.write_text(text)


def sections_of(text):
    """Returns the HTML of each section of a page, by title."""
    parts = text.split("<section><h2>")[1:]
    return dict(part.split("</section>")[0].split("</h2>", 1) for part in parts)


def render(workdir):
    return sections_of(page.render(record.read(str(workdir))))


def test_a_finished_run_has_all_sections(report, run):
    text = report.read_text()
    sections = sections_of(text)
    assert list(sections) == [
        "Curves", "Warnings", "Speed", "Evaluation", "View pairs", "Nearest neighbours",
        "Map of the features", "Configuration", "Starts",
    ]  # fmt: skip
    assert "Not shown" not in text
    summary = json.loads((run / "summary.json").read_text())
    assert f"<dd>{summary['loss']:.3f}</dd>" in text
    assert f"<dd>{summary['knn_top1']:.1f} %<small>" in text
    assert re.search(r"Finished: 2 epochs, 44 steps, 1437 images, in [\d:]+ on \w+", text)
    assert html.escape(summary["limit"]) in sections["Speed"]
    assert sections["Curves"].count("<svg") == 6
    assert "collapsed below 0.3" in sections["Curves"]
    assert "<td>98.33\N{NO-BREAK SPACE}%</td>" in sections["Evaluation"]
    assert "96.4 to 99.2 % (360 images)" in sections["Evaluation"]
    assert sections["View pairs"].count("<img") == 2 * 8
    assert sections["Nearest neighbours"].count("<img") == (8 + 4) * 6
    assert "digits/1.0.0 test" in sections["Nearest neighbours"]
    (rows,) = json_of(sections["Map of the features"])
    assert len(rows["data"]["values"]) == 360
    assert len({row["class"] for row in rows["data"]["values"]}) == 10


def json_of(content):
    """The specifications of the charts in a section."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', content)
    return [json.loads(text) for text in found]


def test_a_report_says_when_where_and_how_the_run_was_started(report, run):
    starts = sections_of(report.read_text())["Starts"]
    (start,) = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert start["time"].replace("T", " ") in starts
    assert start["command"].startswith("train.py --")
    assert html.escape(start["command"]) in starts
    assert html.escape(start["device"]) in starts
    assert re.fullmatch(r"\d+\.\d+\.\d+(, commit [0-9a-f]{7,}(-dirty)?)?", start["version"])


def test_flags_that_differ_from_their_defaults_come_first(report):
    changed, same = sections_of(report.read_text())["Configuration"].split("<details>")
    assert "<td>width</td><td>16</td><td>64</td>" in changed
    assert ">momentum<" not in changed
    assert "<td>momentum</td><td>0.9</td>" in same
    assert ">width<" not in same


def test_the_name_and_the_warnings_of_a_run_are_escaped(report):
    text = report.read_text()
    assert "<h1>&lt;i&gt;&amp;run</h1>" in text
    assert f"Lost &lt;b&gt;{LONG}&lt;/b&gt;" in text


def test_the_view_pairs_equal_those_that_the_run_logged_at_its_first_step(run):
    first, second = pictures.view_pairs(record.read(str(run)).config)
    (path,) = (run / "tensorboard").glob("events*")
    (shown,) = [
        value.tensor.string_val[2]
        for event in summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "views/pairs"
    ]
    np.testing.assert_allclose(
        np.concatenate(np.concatenate([first, second], axis=2)).astype(int),
        tf.io.decode_png(shown).numpy(),
        atol=1,
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    path = browser.find()
    if path is None:
        reason = f"no browser is installed, none of {', '.join(browser.NAMES)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with browser.started(path, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_report_without_a_network_and_within_the_screen(
    tab, report, width, dark
):
    asked, complaints = tab.open(report.as_uri(), width, dark)
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert complaints == []
    tab.wait("document.documentElement.className == 'drawn'")
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    # No element is cut off at the right edge of the screen.
    right = (
        "Math.max(...[...document.querySelectorAll('*')].map(e => e.getBoundingClientRect().right))"
    )
    assert tab.value(right) <= width
    assert tab.value("[...document.images].length") == 2 * 8 + (8 + 4) * 6
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    shade = np.mean([int(part) for part in re.findall(r"\d+", background)])
    assert shade < 60 if dark else shade > 200
    assert tab.value("getComputedStyle(document.querySelector('.verdict strong')).fontWeight") > "5"


# The middle of the nth mark of a chart, scrolled into the window.
MIDDLE = """(() => {
  const mark = document.querySelectorAll('%s .mark-symbol.role-mark path')[%d];
  mark.scrollIntoView({block: "center"});
  const {left, right, top, bottom} = mark.getBoundingClientRect();
  return [(left + right) / 2, (top + bottom) / 2];
})()"""
TOOLTIP = "document.querySelector('#vg-tooltip-element.visible')"


def opened(tab, report):
    _, complaints = tab.open(report.as_uri(), 1200)
    tab.wait("document.documentElement.className == 'drawn'")
    assert complaints == []


def test_a_curve_shows_its_value_under_the_pointer(tab, report, run):
    opened(tab, report)
    tab.point(tab.value(MIDDLE % (".curves .chart", 1)))
    tab.wait(TOOLTIP)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    second = [line for line in lines if "loss" in line][1]
    shown = tab.value(f"{TOOLTIP}.textContent").replace("\N{MINUS SIGN}", "-")
    assert f"{second['loss']:.4g}" in shown
    assert f"{second['epoch']:.4g}" in shown


def test_a_click_on_the_map_shows_the_neighbours_of_an_image(tab, report):
    opened(tab, report)
    place = tab.value(MIDDLE % (".map", 7))
    tab.point(place)
    tab.wait(f"{TOOLTIP} && {TOOLTIP}.querySelector('img')")
    seen = tab.value(f"{TOOLTIP}.querySelector('img').src")
    tab.point(place, click=True)
    tab.wait("document.querySelectorAll('.chosen img').length == 6")
    assert tab.value("document.querySelector('.chosen img').src") == seen
    captions = tab.value(
        "[...document.querySelectorAll('.chosen figcaption')].map(e => e.innerText)"
    )
    (chart,) = json_of(sections_of(report.read_text())["Map of the features"])
    rows = chart["data"]["values"]
    (chosen,) = [row for row in rows if row["image"] == seen]
    expected = [f"{rows[index]['class']} · {cosine:.2f}" for index, cosine in chosen["near"]]
    assert captions == [chosen["class"], *expected]
    # The image and its neighbours have a ring on the map.
    rings = "[...document.querySelectorAll('.map .mark-symbol.role-mark path')].filter("
    tab.wait(f"{rings}e => e.getAttribute('stroke') == 'var(--ink)').length == 6")


def test_smoothing_and_the_logarithmic_axis_change_the_curves(tab, report):
    opened(tab, report)
    curve = "document.querySelector('.curves .mark-line path').getAttribute('d')"
    ticks = (
        "[...document.querySelectorAll('.curves .chart')[4].querySelectorAll('.role-axis text')]"
        ".map(e => e.textContent).join()"
    )
    before, linear = tab.value(curve), tab.value(ticks)
    change = (
        "(() => {const input = document.querySelector('[name=%s]'); input.%s;"
        "input.dispatchEvent(new Event('change', {bubbles: true}))})()"
    )
    tab.value(f"{change % ('smoothing', 'value = 0.9')}; 0")
    tab.wait(f"{curve} != {json.dumps(before)}")
    tab.value(f"{change % ('log', 'checked = true')}; 0")
    tab.wait(f"{ticks} != {json.dumps(linear)}")


def test_without_scripts_the_page_says_everything(tab, report):
    tab.run_scripts(False)
    try:
        tab.open(report.as_uri(), 1200)
        assert tab.value("document.querySelectorAll('.chart svg').length") == 7
        assert tab.value("document.querySelector('.controls').hidden")
        assert "collapsed below 0.3" in tab.value("document.querySelector('.curves').textContent")
    finally:
        tab.run_scripts(True)


def test_several_runs_have_one_page_with_the_flags_that_differ(program, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    set_flags(other, base_learning_rate=0.7)
    output = tmp_path / "both.html"
    finished = program("-m", "simsiam_tf.report", run, other, f"--output={output}")
    assert finished.returncode == 0, finished.stderr
    sections = sections_of(output.read_text())
    assert list(sections) == ["Results", "Curves", "Flags that differ", "Evaluation"]
    differing = re.findall(r"<tr><td[^>]*>(.*?)</td>", sections["Flags that differ"])
    assert [name.replace("<wbr>", "") for name in differing] == ["base_learning_rate"]
    assert "<td>0.7</td>" in sections["Flags that differ"]
    loss, *_ = json_of(sections["Curves"])
    assert {row["run"] for row in loss["data"]["values"]} == {"<i>&run", "other"}
    assert sections["Evaluation"].count("98.33") == 2


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_papers_report_without_a_network(tab, tmp_path, width, dark):
    for run in ("simsiam_decayed", "no_stop_gradient"):
        folder = tmp_path / run / "seed-0"
        folder.mkdir(parents=True)
        line = {"step": 1, "epoch": 1, "loss": -0.5, "feature_std": 0.9, "knn_top1": 50.0}
        (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    paper_report.write(ReproduceConfig(workdir=str(tmp_path)))
    url = (tmp_path / "report.html").as_uri()
    asked, complaints = tab.open(url, width, dark)
    assert asked == [url]
    assert complaints == []
    tab.wait("document.documentElement.className == 'drawn'")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.querySelectorAll('svg').length") == 3
    background = tab.value("getComputedStyle(document.body).backgroundColor")
    shade = np.mean([int(part) for part in re.findall(r"\d+", background)])
    assert shade < 60 if dark else shade > 200


def test_the_papers_report_has_a_tally_and_a_link_to_each_run(tmp_path):
    for run in ("simsiam_decayed", "no_stop_gradient"):
        folder = tmp_path / run / "seed-0"
        folder.mkdir(parents=True)
        line = {"step": 1, "epoch": 1, "loss": -0.5, "feature_std": 0.9}
        (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n")
    (tmp_path / "simsiam_decayed" / "seed-0" / "report.html").write_text("")
    paper_report.write(ReproduceConfig(workdir=str(tmp_path)))
    text = (tmp_path / "report.html").read_text()
    tables = json.loads((tmp_path / "report.json").read_text())["tables"]
    tally = re.search(r"<p>Of (\d+) findings: (.*?)</p>", text)
    counts = [int(count) for count in re.findall(r"(\d+) <strong", tally[2])]
    assert int(tally[1]) == sum(counts) == len(tables)
    links = set(re.findall(r'<a href="([^"#]+)">seed 0</a>', text))
    assert "simsiam_decayed/seed-0/report.html" in links
    assert "no_stop_gradient/seed-0/metrics.jsonl" in links


def test_the_browser_detects_a_request_and_a_line_that_is_too_wide(tab, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        "<!doctype html><img src='https://example.invalid/a.png'><pre style='width: 500px'>x</pre>"
    )
    asked, complaints = tab.open(path.as_uri(), 390)
    assert "https://example.invalid/a.png" in asked
    assert complaints
    assert tab.value("document.documentElement.scrollWidth") > 390


def test_an_unfinished_run_has_a_report(run, tmp_path):
    workdir = tmp_path / "unfinished"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("encoder", "*.json", "logs"))
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:4]) + lines[4][:9])
    text = page.render(record.read(str(workdir)))
    assert f"Not finished: epoch {json.loads(lines[3])['epoch']:g} of 2." in text
    sections = sections_of(text)
    assert "So far the devices waited" in sections["Speed"]
    assert "train.py --export writes it" in sections["Nearest neighbours"]
    assert "train.py --export writes it" in sections["Map of the features"]
    assert "evaluate.py" in sections["Evaluation"]
    assert "None." in sections["Warnings"]
    assert sections["View pairs"].count("<img") == 2 * 8


def test_a_run_without_a_step_has_a_report(tmp_path, run):
    shutil.copy(run / "flags.cfg", tmp_path)
    sections = render(tmp_path)
    assert "No step is logged yet" in sections["Curves"]
    assert "Nothing is measured yet" in sections["Speed"]


def test_a_run_whose_data_set_is_missing_has_a_report_that_says_so(run, tmp_path):
    workdir = tmp_path / "gone"
    shutil.copytree(run, workdir)
    set_flags(workdir, dataset="folder", data_dir=tmp_path / "no_images")
    sections = render(workdir)
    for title in ("View pairs", "Nearest neighbours", "Map of the features"):
        assert "Not shown. --data_dir must be a folder that exists" in sections[title]
    assert sections["Curves"].count("<svg") == 6


def test_a_run_on_images_without_labels_has_neighbours_and_a_map(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        image = np.full([20, 20, 3], 20 * number, np.uint8)
        (images / f"{number:02d}.png").write_bytes(tf.io.encode_png(image).numpy())
    (images / "bad.png").write_text("no image")
    workdir = tmp_path / "unlabelled"
    shutil.copytree(run, workdir)
    set_flags(workdir, dataset="folder", data_dir=images, max_bad_fraction=0.2)
    sections = render(workdir)
    assert sections["View pairs"].count("<img") == 2 * 8
    assert sections["Nearest neighbours"].count("<img") == (8 + 4) * 6
    assert "class" not in re.sub('class="', "", sections["Nearest neighbours"])
    (chart,) = json_of(sections["Map of the features"])
    assert len(chart["data"]["values"]) == 12
    assert "role-legend" not in sections["Map of the features"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, ["--run must be non-empty"]),
        (["no/run"], 1, ["--run must be", "of a run", "Received: no/run"]),
        (["no/run", "two"], 1, ["--run must be", "of a run", "Received: no/run"]),
    ],
)
def test_a_wrong_run_ends_the_program_with_one_line(program, arguments, status, words):
    finished = program("-m", "simsiam_tf.report", *arguments)
    assert finished.returncode == status, finished.stderr
    line = finished.stderr.splitlines()[-1]
    assert line.startswith("report.py: ")
    for word in words:
        assert word in line


def test_an_output_that_cannot_be_written_ends_the_program_with_one_line(program, run, tmp_path):
    output = tmp_path / "missing" / "page.html"
    finished = program("-m", "simsiam_tf.report", f"--run={run}", f"--output={output}")
    assert finished.returncode == 1
    assert f"Received: {output}" in finished.stderr.splitlines()[-1]
