"""The programs' command lines, run as a user runs them. None of this loads TensorFlow."""

import contextlib
import gc
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from simsiam_tf import config as config_lib
from simsiam_tf import flags, schema
from simsiam_tf.evaluation.config import EvaluationConfig

POSITIONAL = """
import dataclasses
from simsiam_tf import flags, schema

@dataclasses.dataclass(frozen=True)
class Place(schema.Config):
    "Place"
    count: int = schema.setting(0, "How many.")
    place: str = schema.setting("", "Where.", filled=True, positional=True)

flags.run(lambda config: print(config.place), Place)
"""


def assert_one_line(finished, status, *words):
    assert finished.returncode == status, finished.stderr
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_help_shows_every_flag_under_its_group(new_program):
    text = new_program("train.py", "--helpfull").stdout
    groups = re.split(r"\n(?=[A-Z][^\n]*:\n  --)", text)
    assert len(groups) == 2 + len(schema.groups_of(config_lib.PretrainConfig))  # and flagfiles
    data = next(group for group in groups if group.startswith("Data:"))
    assert "--dataset" in data
    assert "--momentum" not in data
    for name in schema.run_defining_names(config_lib.PretrainConfig):
        assert re.search(rf"--(\[no\])?{name}\b", text), name


def test_help_has_the_twenty_flags_that_most_people_need_a_line_each(new_program):
    text = new_program("train.py", "--help").stdout
    names = re.findall(r"\n  --([a-z_]+): ", text.split("In brackets")[0])
    assert names == list(config_lib.PretrainConfig.main_flags)
    assert len(names) == 20
    assert f"--helpfull shows all {len(schema.defaults(config_lib.PretrainConfig))} flags" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("epoch", "--epochs"),
        ("learning_rate", "--base_learning_rate"),
        ("lr", "--base_learning_rate"),
        ("model", "--backbone"),
        ("batchsize", "--batch_size"),
        ("nostop_gradients", "--stop_gradient"),
        ("gpus", "--strategy"),
        ("input_path", "--data_dir"),
        ("frobnicate", "--helpfull"),
    ],
)
def test_an_unknown_flag_is_answered_by_one_of_the_same_meaning(name, meant):
    with pytest.raises(schema.UserError) as error:
        flags.read([f"--{name}=1"], config_lib.PretrainConfig)
    assert meant in str(error.value)


def test_help_may_be_cut_off_by_its_reader():
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "train.py", "--help"]
    finished = subprocess.run(
        command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write_end)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--momentum=2"], ["--momentum", "2", "below 1"]),
        (["--stem=other"], ["--stem", "other", "imagenet, cifar"]),
        (["--epochs=many"], ["--epochs", "many"]),
        (["--dataset="], ["--dataset", "non-empty"]),
        (["--epoch=3"], ["epoch"]),
        (["extra"], ["extra"]),
        (["--blur_sigma_min=3"], ["--blur_sigma_min", "3.0"]),
        (["--flagfile=missing.cfg"], ["missing.cfg"]),
    ],
)
def test_a_wrong_flag_ends_with_one_line_and_status_2(new_program, arguments, words):
    assert_one_line(new_program("train.py", *arguments), 2, *words)


@pytest.mark.parametrize("arguments", [["mine"], ["--place=mine"], ["--count=1", "mine"]])
def test_one_setting_may_stand_without_its_name(new_program, arguments):
    finished = new_program("-c", POSITIONAL, *arguments)
    assert finished.stdout == "mine\n", finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--place must be non-empty"]),
        ([""], ["--place must be non-empty"]),
        (["mine", "yours"], ["Received: yours"]),
        (["--place=mine", "yours"], ["Received: yours"]),
    ],
)
def test_only_that_setting_may(new_program, arguments, words):
    assert_one_line(new_program("-c", POSITIONAL, *arguments), 2, *words)


def test_an_unknown_flag_in_a_flagfile_is_named(new_program, tmp_path):
    flagfile = tmp_path / "mine.cfg"
    flagfile.write_text("--epochs=3\n--lerning_rate=1\n")
    assert_one_line(new_program("train.py", f"--flagfile={flagfile}"), 2, "lerning_rate")


def test_arguments_are_read_as_a_program_reads_them(tmp_path):
    (tmp_path / "mine.cfg").write_text("# a remark\n--epochs=3\n--noexport\n")
    arguments = [f"--flagfile={tmp_path / 'mine.cfg'}", "--momentum=0.5"]
    found = schema.flatten(flags.read(arguments, config_lib.PretrainConfig))
    expected = schema.defaults(config_lib.PretrainConfig) | {"epochs": 3, "momentum": 0.5}
    assert found == expected


@pytest.mark.parametrize(
    ("argument", "word"),
    [
        ("--momentum=2", "below 1"),
        ("--epoch=3", "'epoch'"),
        ("--flagfile=missing.cfg", "missing"),
        ("extra", "Received: extra"),
    ],
)
def test_arguments_that_a_program_refuses_are_a_user_error(argument, word):
    with pytest.raises(schema.UserError, match=word):
        flags.read([argument], config_lib.PretrainConfig)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "auto"),
        (["--xla"], "true"),
        (["--noxla"], "false"),
        (["--xla=true"], "true"),
        (["--xla=false"], "false"),
        (["--xla=false", "--xla=auto"], "auto"),
    ],
)
def test_a_switch_is_written_as_it_was_when_it_was_a_boolean(arguments, value):
    assert flags.read(arguments, config_lib.PretrainConfig).system.xla == value


@pytest.mark.parametrize("argument", ["--xla=yes", "--steps_per_loop=0", "--steps_per_loop=many"])
def test_a_switch_or_a_count_of_another_word_is_refused(argument):
    with pytest.raises(schema.UserError, match=argument.split("=")[0]):
        flags.read([argument], config_lib.PretrainConfig)


def test_evaluation_needs_an_encoder(new_program):
    assert_one_line(new_program("evaluate.py"), 2, "--encoder")


def test_help_and_wrong_flags_do_not_load_tensorflow(new_program):
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--momentum=2']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 2, end.code\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    assert new_program("-c", code).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.py", "--workdir=no/run"],
        ["evaluate.py", "--encoder=no/encoder"],
        ["simsiam_tf/data/inspect.py"],
    ],
)
def test_a_folder_that_is_missing_is_told_before_tensorflow_loads(new_program, arguments):
    program, *others = arguments
    code = (
        f"import sys, runpy; sys.argv = {[program, *others]} + ['--dataset=folder', "
        "'--data_dir=no/images']\n"
        f"try: runpy.run_path({program!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 1, end.code\n"
        "assert 'tensorflow' not in sys.modules"
    )
    finished = new_program("-c", code)
    assert finished.returncode == 0, finished.stderr
    assert "--data_dir must be a folder that exists. Received: no/images" in finished.stderr


@pytest.mark.parametrize("program", [["train.py"], ["-m", "simsiam_tf.training"]])
def test_another_keras_backend_is_one_line(new_program, monkeypatch, program):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert_one_line(new_program(*program), 1, "KERAS_BACKEND=tensorflow", "jax")


def test_keras_loaded_with_another_backend_is_an_import_error(new_program, monkeypatch):
    # A stand-in with Keras' own function: no other backend is installed.
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    code = (
        "import sys, types\n"
        "keras = types.ModuleType('keras'); keras.config = types.ModuleType('keras.config')\n"
        "keras.config.backend = lambda: 'torch'; sys.modules['keras'] = keras\n"
        "import simsiam_tf; simsiam_tf.pretrain"
    )
    finished = new_program("-c", code)
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines()[-1].endswith("Received: torch")


def test_garbage_is_collected_again_after_the_imports_even_if_one_fails():
    before = gc.get_freeze_count()
    with contextlib.suppress(ImportError), flags.heavy_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() > before  # what the imports made is left out


def test_the_users_own_environment_is_kept(new_program, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    code = "import os, simsiam_tf; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert new_program("-c", code).stdout == "0\n"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "configs").rglob("*.cfg")) if "paper" not in path.parts],
    ids=lambda path: path.stem,
)
def test_every_shipped_flagfile_sets_what_it_says(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    is_transfer = path.parent.name == "transfer"
    config_class = EvaluationConfig if is_transfer else config_lib.PretrainConfig
    needed = ["--encoder=x"] if is_transfer else []
    found = schema.flatten(flags.read([f"--flagfile={path}", *needed], config_class))
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    assert lines
    for line in lines:
        name, _, text = line.removeprefix("--").partition("=")
        if name == "recipe":
            continue
        kind = type(found[name])
        assert found[name] == (text in ("", "true") if kind is bool else kind(text)), name
    if is_transfer:
        assert found["dataset"] == path.stem


def test_arguments_that_are_no_flags_go_where_a_program_wants_them(new_program):
    code = (
        "import dataclasses\n"
        "from simsiam_tf import flags, schema\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Files(schema.Config):\n"
        "    'Files'\n"
        "    files: tuple[str, ...] = schema.setting((), 'Some files.', positional=True)\n"
        "    size: int = schema.setting(1, 'A size.')\n"
        "flags.run(lambda config: print(config.files, config.size), Files)"
    )
    assert new_program("-c", code, "a", "--size=2", "b").stdout == "('a', 'b') 2\n"
    assert new_program("-c", code).stdout == "() 1\n"
    text = new_program("-c", code, "--help").stdout
    assert "--size" in text
    assert "--files" not in text


def test_the_interpreter_is_one_that_the_readme_names():
    assert (3, 11) <= sys.version_info[:2] <= (3, 13)


def test_control_c_outside_of_training_is_one_line_and_status_130(new_program):
    code = (
        "from simsiam_tf import config, flags\n"
        "def main(settings): raise KeyboardInterrupt\n"
        "flags.run(main, config.PretrainConfig)"
    )
    assert_one_line(new_program("-c", code), 130, "Interrupted")


def test_what_a_program_writes_is_not_for_others_to_change(new_program, tmp_path):
    code = (
        "import os, sys; from simsiam_tf import config, flags\n"
        "os.umask(0)\n"
        "def main(settings): os.makedirs(settings.system.workdir); "
        "open(settings.system.workdir + '/file', 'w')\n"
        "flags.run(main, config.PretrainConfig)"
    )
    finished = new_program("-c", code, f"--workdir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "run", tmp_path / "run" / "file")]
    assert modes == [0o775, 0o664]
