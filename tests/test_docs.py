"""The documents: links lead somewhere, and every command is one that the programs take."""

import importlib
import operator
import os
import re
import shlex
import shutil
import tomllib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from simsiam_tf import flags
from simsiam_tf.config import PretrainConfig
from simsiam_tf.evaluation import feature_file

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAIN = re.compile(r"^ +flags\.run\(main, ([\w.]+)\)$", re.MULTILINE)
PYTHON = re.compile(r"(.*/)?python3?")
# The module of each installed program.
INSTALLED = {
    name: target.partition(":")[0]
    for name, target in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "scripts"
    ].items()
}
# The module that each script in the root of the repository starts.
SCRIPTS = {
    "train.py": INSTALLED["simsiam-train"],
    "evaluate.py": INSTALLED["simsiam-evaluate"],
}
# Of others; the last one is Detectron2's, by MoCo.
NOT_OURS = {"venv", "pytest", "pip", "train_net.py"}


def anchors_of(document):
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_every_link_leads_to_a_file_and_its_heading(document):
    for link in LINK.findall(document.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def commands_of(text):
    """The programs of a shell's lines that are Python's or ours: (program, *arguments) of each."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        starts = [place + 1 for place, word in enumerate(words) if PYTHON.fullmatch(word)]
        starts += [place for place, word in enumerate(words) if word in INSTALLED]
        for start in starts:
            rest = words[start:]
            ends = [place for place, word in enumerate(rest) if set(word) <= set("();<>|&")]
            commands.append(rest[: min(ends, default=len(rest))])
    return commands


COMMANDS = {
    f"{name}: {' '.join(command)}": command
    for name, document in zip(NAMES, DOCUMENTS, strict=True)
    for language, text in FENCE.findall(document.read_text())
    if not language
    for command in commands_of(text)
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_one_that_its_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the flagfiles are
    program, *arguments = command
    program = INSTALLED.get(program) or SCRIPTS.get(program) or program
    is_module = program.startswith("simsiam_tf.")
    if program == "-m":
        program, *arguments = arguments
        is_module = True
    if is_module:
        path = program.replace(".", os.sep)
        path += f"{os.sep}__main__.py" if (ROOT / path).is_dir() else ".py"
    else:
        path = program
    if program in NOT_OURS:
        return
    text = (ROOT / path).read_text()
    main = MAIN.search(text)
    if main:
        module = importlib.import_module(path.removesuffix(".py").replace(os.sep, "."))
        flags.read(arguments, operator.attrgetter(main[1])(module))
    else:  # argparse's
        rest = [one for one in arguments if f'"{one.split("=")[0]}"' not in text]
        if "flags.read(rest, PretrainConfig)" in text:  # it takes those of train.py too
            flags.read(rest, PretrainConfig)
        else:
            assert not [one for one in rest if one.startswith("--")]


def test_the_readmes_programs_are_found():
    found = " ".join(name for name in COMMANDS if name.startswith("README.md"))
    for program in ("train.py", "evaluate.py", "simsiam_tf.report", "simsiam_tf.curves"):
        assert program in found


@pytest.fixture
def own_images(tiny_run, tmp_path, monkeypatch):
    """The current folder is one in which docs/own_images.md has come to its classifiers."""
    monkeypatch.chdir(tmp_path)
    # Another test of this process may have asked for deterministic operations, which need a seed.
    keras.utils.set_random_seed(0)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tiny_run)
    for split in ("train", "test"):
        paths = []
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / "my_images" / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                level = tf.constant(60 + 120 * label + number, tf.uint8)
                paths.append(str(folder / f"{number}.png"))
                tf.io.write_file(paths[-1], tf.io.encode_png(tf.fill([32, 32, 3], level)))
        labels = np.repeat([0, 1], 8)
        features = np.random.default_rng(0).standard_normal((16, 4)) + 9 * labels[:, None]
        feature_file.save(
            f"{split}.npz", features.astype("f"), labels, range(16), paths, ["dark", "light"], {}
        )
    shutil.copy("test.npz", "heap.npz")


@pytest.mark.usefixtures("own_images")
def test_the_examples_of_own_images_tell_light_from_dark(capsys):
    text = (ROOT / "docs" / "own_images.md").read_text()
    from_features, from_images, nearest = (
        code for kind, code in FENCE.findall(text) if kind == "python"
    )
    exec(from_features, {})
    output = capsys.readouterr().out
    assert output.startswith("100.0% of the test images\n")
    assert "/test/dark/0.png dark\n" in output
    found = {}
    exec(from_images, found)
    ((features, labels),) = found["test"]
    hits = found["classifier"].predict(features, verbose=0).argmax(axis=1) == labels
    assert np.mean(hits) > 0.9
    capsys.readouterr()
    exec(nearest, {})
    pairs = [line.split(" is most like ") for line in capsys.readouterr().out.splitlines()]
    assert len(pairs) == 5
    for path, other in pairs:
        assert path != other
        assert os.path.dirname(path) == os.path.dirname(other)


def test_the_segmentation_of_backbones_finds_most_strokes_and_their_digits(tiny_run, capsys):
    text = (ROOT / "docs" / "backbones.md").read_text()
    (code,) = (code for kind, code in FENCE.findall(text) if kind == "python")
    assert code.count("runs/digits/encoder") == 1
    exec(code.replace("runs/digits/encoder", f"{tiny_run}/encoder"), {})
    (overlap,) = re.findall(r"union: ([\d.]+) %", capsys.readouterr().out)
    assert float(overlap) > 40


def test_the_digits_flagfile_expects_what_the_readme_reports():
    shipped, collapsed = re.findall(
        r"^\| .*seeds? 0.* \| (.*) \| (.*) \| (.*) % \| .* \| .* \|$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    comment = " ".join((ROOT / "configs" / "digits.cfg").read_text().replace("#", " ").split())
    loss, std, knn = shipped
    assert f"kNN top-1 {knn} % over three seeds" in comment
    assert f"loss {loss}, std {std};" in comment
    loss, std, knn = collapsed
    assert f"the run collapses: loss {loss}, std {std}, kNN {knn} %." in comment
