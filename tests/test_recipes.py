"""Flagfiles include each other, and the recipes among them are found by name."""

import pytest
from conftest import ROOT

from simsiam_tf import flags, recipes, schema
from simsiam_tf.config import PretrainConfig


def settings_of(*arguments):
    return schema.flatten(flags.read(list(arguments), PretrainConfig))


def test_every_shipped_flagfile_is_a_recipe():
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.cfg")}
    assert recipes.names() == sorted(path.as_posix().removesuffix(".cfg") for path in shipped)


@pytest.mark.parametrize("name", ["r50", "byol_r50", "paper/digits/byol_100"])
def test_a_recipe_is_its_flagfile_from_any_folder(name, tmp_path, monkeypatch):
    expected = settings_of(f"--flagfile={ROOT / 'configs' / name}.cfg", "--epochs=7")
    assert expected["epochs"] == 7
    monkeypatch.chdir(tmp_path)
    assert settings_of(f"--recipe={name}", "--epochs=7") == expected
    assert settings_of("--recipe", name, "--epochs=7") == expected


def test_a_flagfile_finds_another_beside_itself_before_the_current_folder(tmp_path, monkeypatch):
    for folder, epochs in (("here", 3), ("there", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "other.cfg").write_text(f"// a remark\n\n--epochs={epochs}\n")
    (tmp_path / "there" / "mine.cfg").write_text("--flagfile=other.cfg\n  --seed=5\n")
    monkeypatch.chdir(tmp_path / "here")
    found = settings_of("--flagfile=../there/mine.cfg")
    assert (found["epochs"], found["seed"]) == (4, 5)
    (tmp_path / "there" / "other.cfg").unlink()
    assert settings_of("--flagfile=../there/mine.cfg")["epochs"] == 3


def test_later_flags_override_earlier_ones():
    assert settings_of("--epochs=3", "--recipe=r50")["epochs"] == 100
    assert settings_of("--recipe=r50", "--epochs=3")["epochs"] == 3


def test_arguments_after_two_dashes_stay_as_they_are():
    assert recipes.expand(["a", "--", "--recipe=r50"]) == ["a", "--", "--recipe=r50"]


def test_flagfiles_in_a_circle_are_a_user_error(tmp_path):
    (tmp_path / "a.cfg").write_text("--flagfile=b.cfg\n")
    (tmp_path / "b.cfg").write_text("--flagfile=a.cfg\n")
    with pytest.raises(schema.UserError, match=r"must not include itself. Received: .*a\.cfg"):
        settings_of(f"--flagfile={tmp_path / 'a.cfg'}")


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ("--recipe=r51", "--recipe must be auto or one of byol_cifar10, .*Received: r51"),
        ("--recipe=../configs/r50", "--recipe must be auto or one of"),
        ("--recipe=", "--recipe must be auto or one of"),
        ("--flagfile=missing.cfg", "No such file.*Received: .*missing.cfg"),
        ("--flagfile=", "Is a directory"),
    ],
)
def test_an_unknown_recipe_or_flagfile_is_a_user_error(argument, match):
    with pytest.raises(schema.UserError, match=match):
        settings_of(argument)
