import os

import numpy as np
import pytest

from simsiam_tf import files
from simsiam_tf.evaluation import feature_cache
from simsiam_tf.schema import UserError

FEATURES, LABELS = np.arange(6, dtype="float32").reshape(3, 2), np.array([2, 0, 1], "int32")


class Extractor:
    """An extraction of fixed arrays that counts its calls."""

    def __init__(self, features=FEATURES, labels=LABELS):
        self.calls = 0
        self.result = features, labels

    def __call__(self, *files):
        self.calls += 1
        for file, rows in zip(files, self.result, strict=True):
            np.save(file, rows)


def load(folder, extract, **facts):
    features, labels = feature_cache.load_or_extract(str(folder), facts, "images", extract)
    np.testing.assert_array_equal(features, extract.result[0])
    np.testing.assert_array_equal(labels, extract.result[1])
    return features, labels


def test_features_are_extracted_once_and_then_memory_mapped(tmp_path):
    extract = Extractor()
    for _ in range(2):
        features, labels = load(tmp_path, extract, encoder="a")
        assert isinstance(features, np.memmap)
    assert extract.calls == 1
    assert (features.dtype, labels.dtype) == ("float32", "int32")


def test_other_facts_are_extracted_again(tmp_path):
    extract = Extractor()
    for facts in ({"encoder": "a"}, {"encoder": "b"}, {"encoder": "a", "size": 8}):
        load(tmp_path, extract, **facts)
    assert extract.calls == 3


def test_an_entry_whose_writing_was_killed_is_not_read(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(files, "remove", lambda path: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            feature_cache.load_or_extract(str(tmp_path), {}, "images", Extractor(FEATURES + 1))
    assert len(list(tmp_path.iterdir())) == 1
    extract = Extractor()
    load(tmp_path, extract)
    load(tmp_path, extract)
    assert extract.calls == 1


@pytest.mark.parametrize("damage", ["cut", "removed", "emptied"])
def test_a_damaged_entry_is_logged_and_extracted_again(tmp_path, caplog, damage):
    load(tmp_path, Extractor())
    (path,) = tmp_path.glob("*/features.npy")
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -8 if damage == "cut" else 0])
    extract = Extractor()
    load(tmp_path, extract)
    load(tmp_path, extract)
    assert extract.calls == 1
    assert "is damaged" in caplog.text


def test_an_entry_with_a_pickle_is_not_read(tmp_path):
    load(tmp_path, Extractor())
    (path,) = tmp_path.glob("*/features.npy")
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    extract = Extractor()
    load(tmp_path, extract)
    assert extract.calls == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("no image")])
def test_a_failed_extraction_is_a_user_error_and_leaves_no_entry(tmp_path, error):
    def fail(features, labels):
        features.write(b"some")
        raise error

    with pytest.raises(UserError) as raised:
        feature_cache.load_or_extract(str(tmp_path), {}, "images", fail)
    if isinstance(error, OSError):
        assert "--feature_cache must" in str(raised.value)
        assert "No space left on device" in str(raised.value)
    else:
        assert raised.value is error
    assert not list(tmp_path.iterdir())


def test_the_check_makes_the_folder_or_refuses_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--feature_cache must be a folder"):
        feature_cache.check(str(tmp_path / "file" / "features"))
    feature_cache.check(str(tmp_path / "new" / "features"))
    assert not list((tmp_path / "new" / "features").iterdir())


def test_the_hash_of_a_folder_depends_on_names_and_contents_only(tmp_path):
    def hash_of(name, files):
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return feature_cache.hash_of_folder(tmp_path / name)

    first = hash_of("first", {"model.pb": "x", "variables/data": "y"})
    assert hash_of("same", {"variables/data": "y", "model.pb": "x"}) == first
    assert hash_of("content", {"model.pb": "x", "variables/data": "z"}) != first
    assert hash_of("name", {"model.pb": "x", "variables/index": "y"}) != first
