"""`--recipe=auto`: flags by the images and by trials, which a run writes out and keeps."""

import json

import pytest
from run_results import assert_same_run, lines_of

from simsiam_tf import flags
from simsiam_tf.config import PretrainConfig
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.reporting import page, record
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import auto

GIVEN = ["--recipe=auto", "--backbone=resnet10", "--width=4", "--epochs=3", "--seed=5"]


def test_a_run_writes_its_choices_out_keeps_the_trials_and_resumes_with_them(
    red_and_blue, train_here, tmp_path, monkeypatch
):
    monkeypatch.setattr(auto, "_FACTORS", (0.1, 1.0))
    monkeypatch.setattr(auto, "_FEWEST_STEPS", 4)
    red_and_blue(noise=100, tint=40)  # 40 images of 12 pixels
    workdir = tmp_path / "run"
    arguments = [*GIVEN, "--dataset=folder", f"--data_dir={tmp_path}"]
    train_here(workdir, *arguments)
    text = (workdir / "flags.cfg").read_text()
    settings = run_folder.read_config(str(workdir), "run")
    assert (settings.encoder.width, settings.optimization.epochs) == (4, 3)  # as given
    assert (settings.views.image_size, settings.optimization.batch_size) == (16, 16)
    assert settings.optimization.base_learning_rate in (0.1, 1.0)
    assert "# half of the images have a short side of 12 pixels or less\n--image_size=16" in text
    assert "#" not in text.split("--width=4")[0].splitlines()[-1]  # given: no reason

    kept = json.loads((workdir / "auto.json").read_text())
    assert [trial["base_learning_rate"] for trial in kept["trials"]] == [0.1, 1.0]
    assert {trial["steps"] for trial in kept["trials"]} == {4}
    assert "width" not in kept["choices"]
    html = page.render(record.read(str(workdir)))
    assert "Choices of --recipe=auto" in html
    assert "half of the images have a short side of 12" in html
    assert "Trials of the learning rate" in html

    monkeypatch.setattr(auto, "choose", None)  # nothing is chosen anew
    before = lines_of(workdir)
    (workdir / "summary.json").unlink()
    train_here(workdir, *arguments)
    assert lines_of(workdir) == before
    train_here(tmp_path / "again", f"--flagfile={workdir / 'flags.cfg'}")
    assert_same_run(tmp_path / "again", workdir)
    assert (workdir / "flags.cfg").read_text() == text
    # Another given flag is another run.
    with pytest.raises(UserError, match=r"--momentum=0\.9 there, 0\.8 here"):
        train_here(workdir, *arguments, "--momentum=0.8")


def trial(rate, loss, rank=40.0, std=0.95, skipped=0):
    return {
        "base_learning_rate": rate, "loss": loss, "z_effective_rank": rank, "feature_std": std,
        "skipped": skipped, "steps": 60,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ([trial(0.4, -0.2), trial(1.0, -0.6), trial(2.5, -0.5)], 1.0),
        ([trial(0.4, -0.2), trial(1.0, -0.6), trial(2.5, -0.9, std=0.4)], 1.0),
        ([trial(0.4, -0.2), trial(1.0, -0.6), trial(2.5, -0.9, rank=15.0)], 1.0),
        ([trial(0.4, -0.2), trial(1.0, float("nan"), skipped=1), trial(2.5, -0.1)], 0.4),
        ([trial(0.4, -0.9, std=0.1), trial(1.0, -0.99, std=0.1)], 0.4),
    ],
)
def test_the_healthy_trial_with_the_lowest_loss_is_taken(others, best):
    assert auto._best(others)["base_learning_rate"] == best


@pytest.mark.parametrize(
    ("arguments", "config_class", "text"),
    [
        (["--recipe=auto", "--encoder=x"], EvaluationConfig, "--recipe=auto is for training"),
        (["--recipe=autos"], PretrainConfig, "--recipe must be auto or one of"),
    ],
)
def test_auto_is_a_recipe_of_training_alone(arguments, config_class, text):
    with pytest.raises(UserError, match=text):
        flags.read(arguments, config_class)


def test_the_names_of_given_flags_include_those_of_other_flagfiles():
    config = flags.read(["--recipe=digits", "--recipe=auto", "--seed=3"], PretrainConfig)
    assert {"seed", "epochs", "image_size"} <= config.given
    assert "weight_decay" not in config.given
    assert flags.read(["--recipe=digits"], PretrainConfig).given is None
