"""Builds the model and the optimizer of a run from its settings."""

from typing import Any

import keras
import tensorflow as tf

from simsiam_tf.config import OptimizationConfig, PretrainConfig
from simsiam_tf.data.datasets import Source
from simsiam_tf.methods import build_method
from simsiam_tf.methods.base import Plan, SelfSupervisedModel
from simsiam_tf.models import backbones
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.optimization import optimizers, schedules


def plan_of(config: PretrainConfig, source: Source) -> Plan:
    """Returns the `Plan` of a run.

    Args:
      config: the run's settings.
      source: the data set to train on.
    """
    settings = config.optimization
    return Plan(
        num_examples=source.num_examples,
        num_classes=len(source.class_names),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        channels=source.pixels.channels,
    )


def build_encoder(config: PretrainConfig, channels: int) -> Backbone:
    """Returns the encoder of a run, with its initial weights.

    Args:
      config: the run's settings.
      channels: number of channels of the images.
    """
    return backbones.build(config.encoder, config.system.seed, channels, config.views.image_size)


def build_model(
    config: PretrainConfig, strategy: tf.distribute.Strategy, plan: Plan | None = None
) -> tuple[SelfSupervisedModel, keras.optimizers.Optimizer]:
    """Returns the model of a run and its optimizer, both with all their variables.

    Args:
      config: the run's settings.
      strategy: strategy under whose scope the variables are created.
      plan: size and length of the run. SimSiam can be built without it; the learning rate then
        changes at every step instead of at every epoch.
    """
    with strategy.scope():
        encoder = build_encoder(config, plan.channels if plan else 3)
        model = build_method(config.method, encoder, config.system.seed, plan)
        model.accumulate_steps = config.optimization.accumulate_steps
        optimizer = _build_optimizer(config.optimization, model, plan)
        model.compile(optimizer)
    return model, optimizer


def _build_optimizer(
    settings: OptimizationConfig, model: SelfSupervisedModel, plan: Plan | None
) -> keras.optimizers.Optimizer:
    learned = model.learned_variables
    steps_per_epoch = plan.steps_per_epoch if plan else 1
    rates: keras.optimizers.schedules.LearningRateSchedule
    if settings.schedule == "step":
        rates = optimizers.StepRates(
            schedules.initial_learning_rate(settings),
            settings.warmup_epochs * steps_per_epoch,
            settings.epochs * steps_per_epoch,
        )
    else:
        rates = optimizers.EpochRates(schedules.learning_rates(settings), steps_per_epoch)
    common: dict[str, Any] = {
        "learning_rate": rates,
        "weight_decay": settings.weight_decay,
        "constant_rate": schedules.initial_learning_rate(settings),
    }
    if settings.fix_predictor_learning_rate:
        common["constant_rate_variables"] = optimizers.indices(model.predictor_variables, learned)
    if settings.exclude_norm_and_bias:
        # The vectors are the biases, and the scales and offsets of normalization.
        vectors = [variable for variable in learned if len(variable.shape) == 1]
        common["excluded_variables"] = optimizers.indices(vectors, learned)
    optimizer: keras.optimizers.Optimizer
    if settings.optimizer == "adamw":
        optimizer = optimizers.AdamW(**common)
    elif settings.optimizer == "lars":
        trust = settings.lars_trust_coefficient
        optimizer = optimizers.LARS(momentum=settings.momentum, trust_coefficient=trust, **common)
    else:
        optimizer = optimizers.SGD(momentum=settings.momentum, **common)
    optimizer.build(learned)
    return optimizer
