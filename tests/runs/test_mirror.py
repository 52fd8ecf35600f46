"""Runs whose workdir is a URL: what a kill, a failure and another worker leave in the store."""

import contextlib
import json
import logging
import os
import tempfile

import fsspec
import keras
import numpy as np
import pytest
from conftest import MONITORS, TINY_RUN
from fsspec.implementations.memory import MemoryFileSystem
from run_results import assert_same_files, assert_same_run

from simsiam_tf.runs import mirror, run_folder
from simsiam_tf.runs.checkpoints import Checkpoints
from simsiam_tf.schema import UserError
from simsiam_tf.training import pretrain

URL = "mortal://bucket/runs/one"
CHECKPOINT = ("manifest.json", "state.index", "state.data-00000-of-00001")


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing in the run catches it."""


class MortalStore(MemoryFileSystem):
    """A store in memory that fails after a number of changes."""

    protocol = "mortal"
    store: dict = {}  # noqa: RUF012 (not that of memory://)
    pseudo_dirs = [""]  # noqa: RUF012
    num_changes = 0
    error: BaseException | None = None
    fails_from = None  # number of the first change that fails

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("mortal://", "memory://"))

    @classmethod
    def fail(cls, error=None, after=0):
        """Lets all but the next `after` changes fail; no error: none fails."""
        cls.error, cls.fails_from = error, cls.num_changes + after

    @classmethod
    def change(cls):
        if cls.error and cls.num_changes >= cls.fails_from:
            raise cls.error
        cls.num_changes += 1

    def put_file(self, *arguments, **options):
        self.change()
        super().put_file(*arguments, **options)

    def pipe_file(self, *arguments, **options):
        self.change()
        super().pipe_file(*arguments, **options)

    def rm_file(self, path):
        self.change()
        super().rm_file(path)


@pytest.fixture
def store(monkeypatch, tmp_path_factory):
    """The store of `URL`, empty and without failures."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    fsspec.register_implementation("mortal", MortalStore, clobber=True)
    MortalStore.store.clear()
    MortalStore.pseudo_dirs[:] = [""]
    MortalStore.fail(None)
    return MortalStore


def names_in(store):
    return {path.removeprefix("/bucket/runs/one/") for path in store.store}


def fetch_to(folder):
    system, root = fsspec.url_to_fs(URL)
    system.get(f"{root}/", f"{folder}/", recursive=True)
    return folder


class Training:
    """A run of one small layer, whose weights are its step."""

    def __init__(self, pretrain_config, keep=1):
        self.config = pretrain_config(workdir=URL)
        self.keep = keep
        self.uploaded_steps = []

    @contextlib.contextmanager
    def started(self):
        """A start of the program, which yields the step that it resumes from."""
        with mirror.local_copy(self.config) as (config, self.mirror):
            self.workdir = config.system.workdir
            self.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            self.checkpoints = Checkpoints(self.workdir, self.model, keep=self.keep)
            step = self.checkpoints.restore()
            self.lines = run_folder.truncate_metrics(self.workdir, step)
            with self.mirror.uploaded():
                run_folder.write_flags(config, 0, self.mirror.workdir)
                yield step

    def train(self, *steps):
        for step in steps:
            with open(os.path.join(self.workdir, "metrics.jsonl"), "a") as file:
                file.write(json.dumps({"step": step, "epoch": 0}) + "\n")
            self.model.set_weights([np.full([2, 1], step), np.full([1], step)])
            self.checkpoints.save(step)
            self.mirror.upload()
            self.uploaded_steps.append(step)


@pytest.fixture
def training(pretrain_config, store):
    return Training(pretrain_config)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_between_any_two_changes_leaves_a_run_that_resumes(pretrain_config, store, keep):
    after = 0
    while True:
        store.store.clear()
        store.fail(Killed(), after=after)
        killed = Training(pretrain_config, keep)
        with contextlib.suppress(Killed), killed.started():
            killed.train(1, 2, 3)
        has_ended = store.num_changes < store.fails_from
        store.fail(None)

        manifests = [name for name in names_in(store) if name.endswith("manifest.json")]
        for manifest in manifests:
            folder = os.path.dirname(manifest)
            assert {f"{folder}/{name}" for name in CHECKPOINT} <= names_in(store)
        newest = max((int(name.split("/")[1][5:]) for name in manifests), default=None)
        assert (newest or 0) >= max(killed.uploaded_steps, default=0)
        again = Training(pretrain_config, keep)
        with again.started() as step:
            assert step == newest
            assert [line["step"] for line in again.lines] == list(range(1, (step or 0) + 1))
            if step:
                np.testing.assert_array_equal(again.model.get_weights()[1], [step])
                assert "flags.cfg" in names_in(store)
            again.train(*range((step or 0) + 1, 5))
        assert names_in(store) == {
            "flags.cfg", "metrics.jsonl",
            *(
                f"checkpoints/step-{step:09d}/{name}"
                for step in range(5 - keep, 5)
                for name in CHECKPOINT
            ),
        }  # fmt: skip
        if has_ended:
            break
        after += 1
    assert after > 15


def test_a_killed_run_ends_as_an_uninterrupted_one(tiny_run, train_here, store, tmp_path):
    flags = [*TINY_RUN, *MONITORS, "--checkpoint_every_steps=15"]
    store.fail(Killed(), after=14)
    with pytest.raises(Killed):
        train_here(URL, *flags)
    assert "checkpoints/step-000000015/manifest.json" in names_in(store)
    assert "checkpoints/step-000000030/manifest.json" not in names_in(store)
    store.fail(None)
    train_here(URL, *flags)
    run = fetch_to(tmp_path)
    assert_same_run(run, tiny_run)
    assert_same_files(run, tiny_run)
    assert f"--workdir={URL}\n" in (run / "flags.cfg").read_text()
    assert (run / "encoder" / "saved_model.pb").stat().st_size > 0


def test_the_same_command_again_says_finished_and_changes_nothing(
    train_here, store, pretrain_config, caplog
):
    with Training(pretrain_config).started():
        pass
    fsspec.url_to_fs(URL)[0].pipe_file("/bucket/runs/one/summary.json", b"{}")
    caplog.set_level("INFO", logger="absl")
    before = store.num_changes
    pretrain.run(pretrain_config(workdir=URL))
    assert f"The run in {URL} is finished" in caplog.text
    assert store.num_changes == before


def test_another_configuration_is_refused_by_the_name_of_the_url(store, pretrain_config):
    with Training(pretrain_config).started():
        pass
    with pytest.raises(UserError, match=rf"--workdir={URL} holds a run of another .* --seed="):
        pretrain.run(pretrain_config(workdir=URL, seed=7))


def test_a_failed_upload_is_a_warning_and_the_next_checkpoint_uploads_both(
    training, store, caplog, tmp_path
):
    with training.started():
        training.train(1)
        store.fail(OSError("503 busy\nplease wait"), after=2)
        with caplog.at_level(logging.WARNING, logger="absl"):
            training.train(2)
        assert f"could not be uploaded to {URL} (503 busy please wait)" in caplog.text
        assert "checkpoints/step-000000001/manifest.json" in names_in(store)
        store.fail(None)
        training.train(3)
    assert Checkpoints(str(fetch_to(tmp_path)), training.model).restore() == 3


def test_the_files_of_a_run_whose_end_cannot_be_uploaded_are_kept(training, store):
    def train():
        with training.started():
            store.fail(OSError("503 busy"))
            training.train(1)

    with pytest.raises(UserError) as error:
        train()
    message = str(error.value)
    assert "\n" not in message
    for words in ("503 busy", training.workdir, URL):
        assert words in message
    assert Checkpoints(training.workdir, training.model).restore() == 1


def test_the_error_of_a_run_comes_before_that_of_its_last_upload(training, store, caplog):
    def make_a_mistake():
        with training.started():
            store.fail(OSError("503 busy"))
            raise UserError("a mistake")

    with pytest.raises(UserError, match="a mistake"):
        make_a_mistake()
    assert f"kept in {training.workdir}" in caplog.text
    assert os.path.exists(training.workdir)


@pytest.mark.parametrize("error", [None, UserError("a mistake"), Killed()])
def test_the_local_folder_is_removed_once_everything_is_uploaded(training, store, error):
    with contextlib.suppress(UserError, Killed), training.started():
        training.train(1)
        assert os.path.exists(training.workdir)
        if error:
            raise error
    assert not os.path.exists(training.workdir)
    assert "metrics.jsonl" in names_in(store)


def test_a_store_that_cannot_be_written_to_is_found_before_the_training(
    train_here, store, monkeypatch
):
    store.fail(PermissionError("403: alice lacks\nstorage.objects.create"))
    monkeypatch.setattr(pretrain, "_train", None)
    with pytest.raises(UserError) as error:
        train_here(URL, *TINY_RUN)
    assert str(error.value) == (
        "--workdir must be a URL that exists, and you must have permission to write and delete "
        f"there (403: alice lacks storage.objects.create). Received: {URL}"
    )


def test_a_store_that_cannot_be_read_is_one_line(store, pretrain_config, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("401 Unauthorized")

    monkeypatch.setattr(store, "find", refuse)
    with pytest.raises(UserError, match=f"permission to read it .401 Unauthorized.*{URL}"):
        pretrain.run(pretrain_config(workdir=URL))


def test_a_worker_that_is_not_the_first_fetches_the_run_and_writes_nothing(
    training, store, pretrain_config
):
    with training.started():
        training.train(1)
    before = store.num_changes
    with mirror.local_copy(pretrain_config(workdir=URL)) as (config, _):
        folder = config.system.workdir
        assert Checkpoints(folder, training.model).restore() == 1
        open(os.path.join(folder, "of_this_worker"), "w").close()
    assert not os.path.exists(folder)
    assert store.num_changes == before


def test_files_of_others_stay_and_paths_out_of_the_folder_are_not_followed(training, store):
    system = fsspec.url_to_fs(URL)[0]
    with training.started():
        training.train(1)
    for name in ("report.html", "../one/../../escaped"):
        system.store[f"/bucket/runs/one/{name}"] = system.store["/bucket/runs/one/flags.cfg"]
    with training.started():
        assert os.path.exists(os.path.join(training.workdir, "report.html"))
        assert not os.path.exists(os.path.join(os.path.dirname(training.workdir), "escaped"))
        training.train(2)
    assert {"report.html", "../one/../../escaped"} <= names_in(store)


def test_a_local_workdir_is_used_as_it_is(pretrain_config, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror.storage, "open_url", None)
    given = pretrain_config(workdir=str(tmp_path / "run"))
    with mirror.local_copy(given) as (config, copy), copy.uploaded():
        assert config is given
        assert (copy.workdir, copy.folder) == (str(tmp_path / "run"),) * 2
        copy.upload()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_by_a_file_url_is_made_and_resumed_from(pretrain_config, tmp_path):
    training = Training(pretrain_config)
    training.config = pretrain_config(workdir=f"file://{tmp_path}/new/run")
    with training.started() as step:
        assert step is None
        training.train(1, 2)
    names = {path.name for path in (tmp_path / "new" / "run").iterdir()}
    assert names == {"flags.cfg", "metrics.jsonl", "checkpoints"}
    assert os.listdir(tmp_path / "new" / "run" / "checkpoints") == ["step-000000002"]
    with training.started() as step:
        assert step == 2


def test_other_programs_refuse_a_url(pretrain_config):
    with pytest.raises(UserError, match=rf"Only train\.py .* {URL}"):
        run_folder.check_workdir(pretrain_config(workdir=URL))
