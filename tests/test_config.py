import dataclasses

import pytest

from simsiam_tf import config as config_lib
from simsiam_tf import schema
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.schema import UserError


def all_settings(config_class):
    settings = list(schema.settings_of(config_class))
    for group in schema.groups_of(config_class).values():
        settings += all_settings(group)
    return settings


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        (config_lib.ViewsConfig, {"crop_min_area": 0.0}),
        (config_lib.ViewsConfig, {"hue": 0.6}),
        (config_lib.ViewsConfig, {"image_size": 7}),
        (config_lib.OptimizationConfig, {"momentum": 1.0}),
        (config_lib.OptimizationConfig, {"base_learning_rate": float("nan")}),
        (config_lib.OptimizationConfig, {"base_learning_rate": float("inf")}),
        (config_lib.EncoderConfig, {"stem": "other"}),
        (config_lib.DataConfig, {"dataset": " "}),
    ],
)
def test_a_value_outside_its_rule_is_refused_by_name_rule_and_value(config_class, values):
    ((name, value),) = values.items()
    with pytest.raises(UserError) as error:
        config_class(**values)
    assert str(error.value).startswith(f"--{name} must be ")
    assert str(error.value).endswith(f"Received: {value}")


def test_values_at_their_bounds_are_taken():
    views = config_lib.ViewsConfig(crop_min_area=1.0, hue=0.5, image_size=8)
    assert (views.crop_min_area, views.hue, views.image_size) == (1.0, 0.5, 8)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        (config_lib.ViewsConfig, {"blur_sigma_min": 3.0}),
        (config_lib.MonitorConfig, {"knn_data_dir": "x"}),
        (config_lib.MethodConfig, {"queue_size": 7}),
        (config_lib.MethodConfig, {"method": "byol", "stop_gradient": False}),
        (config_lib.MethodConfig, {"method": "supervised", "predictor": "none"}),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config_class, values):
    with pytest.raises(UserError, match="Received: "):
        config_class(**values)


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_lib.ViewsConfig().hue = 0.2


def test_flatten_and_build_are_inverse(pretrain_config):
    config = pretrain_config(seed=7, hue=0.25, dataset="folder", stop_gradient=False)
    values = schema.flatten(config)
    assert (values["seed"], values["hue"], values["stop_gradient"]) == (7, 0.25, False)
    assert schema.build(config_lib.PretrainConfig, values) == config


@pytest.mark.parametrize("config_class", [config_lib.PretrainConfig, EvaluationConfig])
def test_setting_names_are_unique_over_a_program(config_class):
    names = [field.name for field in all_settings(config_class)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("config_class", [config_lib.PretrainConfig, EvaluationConfig])
def test_every_setting_has_a_sentence_of_help_and_a_default_that_its_rule_takes(config_class):
    for field in all_settings(config_class):
        assert field.metadata["help"].endswith("."), field.name
        assert schema.accepts(field, field.default) or field.metadata["filled"], field.name


def test_a_flagfile_has_every_digit_of_a_float(pretrain_config):
    config = pretrain_config(weight_decay=1e-4 / 3, stop_gradient=False)
    text = schema.to_flagfile(schema.flatten(config))
    assert f"--weight_decay={1e-4 / 3!r}\n" in text
    assert "--stop_gradient=false\n" in text
    assert schema.from_flagfile(config_lib.PretrainConfig, text) == config


def test_a_flagfile_that_lacks_a_setting_gives_its_default(pretrain_config):
    read = schema.from_flagfile(config_lib.PretrainConfig, "--backbone=resnet18\n")
    assert read == pretrain_config(backbone="resnet18")


def test_how_a_run_is_watched_or_executed_does_not_define_it():
    names = schema.run_defining_names(config_lib.PretrainConfig)
    assert {"seed", "batch_size", "hue", "precision", "dataset"} <= names
    assert not names & {"workdir", "strategy", "cpu_replicas", "log_every_steps", "export"}
