"""`--recipe=auto`: the flags that are not given are chosen by the images and by short trials.

The choices and the table of the trials stay in the run's folder. A run that resumes takes its
choices from there.
"""

import dataclasses
import math
import time
from typing import Any

import tensorflow as tf
from absl import logging

from simsiam_tf import schema, terminal
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import choices
from simsiam_tf.data.census import take_census
from simsiam_tf.data.choices import Choice
from simsiam_tf.data.source import Source
from simsiam_tf.distribution import devices, workers
from simsiam_tf.runs import diagnosis, run_folder
from simsiam_tf.schema import UserError
from simsiam_tf.training import assembly, health

_MOST_INSPECTED = 5000  # images that are looked at
# The paper's rate, for a batch of 256, is for runs of 100,000 steps or more. Shorter runs need a
# larger one: on the digits, 1.0 for 440 steps. Between the two, it falls with the square root.
_PAPER_RATE, _PAPER_STEPS, _LARGEST_RATE = 0.05, 100_000, 1.0
_FACTORS = (0.4, 1.0, 2.5)  # of that rate, which are tried
_TRIAL_SHARE, _FEWEST_STEPS, _MOST_STEPS = 0.05, 60, 500  # of a trial, of the run's steps
_SPEED_STEPS = 12  # that tell the speed
_CPU_MINUTES = 20  # a run without an accelerator is planned to end after about this time
_FEWEST_EPOCHS = 20


def recall(config: PretrainConfig) -> PretrainConfig:
    """Returns the config with the choices of the run in its workdir; unchanged for a new run."""
    if config.given is None:
        return config
    recorded = run_folder.read_choices(config.system.workdir)
    if not recorded:
        return config
    values = {name: entry["value"] for name, entry in recorded["choices"].items()}
    return _with(config, values)


def choose(config: PretrainConfig, strategy: tf.distribute.Strategy) -> PretrainConfig:
    """Returns the config with every choice made, and writes the choices into the workdir.

    Args:
      config: with the names of the flags that are given in `given`.
      strategy: of the run, which trains the trials too.

    Raises:
      UserError: several machines train, or no image can be read.
    """
    if workers.has_several_workers(strategy):
        raise UserError(
            "--recipe=auto chooses on one machine. Start it there, and train on several with "
            f"--flagfile=WORKDIR/{run_folder.FLAGFILE}. Received: {config.system.strategy}"
        )
    source = assembly.load_source(config)
    census = take_census(
        source,
        config.data.max_image_pixels,
        upright=config.pixels.exif_orientation == "apply",
        limit=_MOST_INSPECTED,
        seed=config.system.seed,
    )
    if not len(census.readable):
        raise UserError(f"No image of {source.name} can be read. Received: {config.data.data_dir}")
    given = config.given or frozenset()
    epochs = config.optimization.epochs if "epochs" in given else None
    found = choices.for_images(census, config) | choices.for_training(census, epochs)
    config = _with(config, choices.values_of(found))
    source = assembly.load_source(config)
    if epochs is None and not devices.on_accelerators(strategy):
        speed = _try(config, strategy, source, _SPEED_STEPS)["images_per_second"]
        found |= _shortened(config, speed, source.num_examples)
        config = _with(config, choices.values_of(found))
    trials = []
    if "base_learning_rate" not in given:
        trials = _try_rates(config, strategy, source)
        best = _best(trials)
        found["base_learning_rate"] = Choice(best["base_learning_rate"], _reason(best, trials))
    found = {name: choice for name, choice in found.items() if name not in given}
    run_folder.write_choices(
        config.system.workdir,
        {name: dataclasses.asdict(choice) for name, choice in found.items() if choice.reason},
        trials,
    )
    config = _with(config, choices.values_of(found))
    for name, choice in found.items():
        if choice.reason:
            terminal.say(f"--{name}={schema.format_value(choice.value)}: {choice.reason}")
    return config


def _with(config: PretrainConfig, values: dict[str, Any]) -> PretrainConfig:
    """Returns the config with these values of the flags that are not given."""
    given = config.given or frozenset()
    settings = schema.flatten(config)
    types = {name: type(value) for name, value in settings.items()}
    chosen = {
        name: types[name](value)
        for name, value in values.items()
        if name not in given and name in settings
    }
    built = schema.build(PretrainConfig, settings | chosen)
    return dataclasses.replace(built, given=config.given)


def _shortened(
    config: PretrainConfig, images_per_second: float, num_examples: int
) -> dict[str, Choice]:
    """Returns fewer epochs if the run would be too long without an accelerator."""
    seconds = 60 * _CPU_MINUTES
    fitting = max(_FEWEST_EPOCHS, int(seconds * images_per_second / num_examples))
    if fitting >= config.optimization.epochs:
        return {}
    reason = (
        f"about {_CPU_MINUTES} minutes at {images_per_second:.0f} images/s without an accelerator; "
        f"{config.optimization.epochs} are better, and the run can go on with them"
    )
    return {"epochs": Choice(fitting, reason), **choices.for_epochs(fitting)}


# The trials of the learning rate.


def _try_rates(
    config: PretrainConfig, strategy: tf.distribute.Strategy, source: Source
) -> list[dict[str, float]]:
    """Returns a row for each learning rate: what a short run with it reached."""
    per_epoch = source.num_examples // config.optimization.batch_size
    wanted = per_epoch * config.optimization.epochs * _TRIAL_SHARE
    steps = int(min(_MOST_STEPS, max(_FEWEST_STEPS, wanted)))
    epochs = math.ceil(steps / per_epoch)
    usual = _PAPER_RATE * math.sqrt(_PAPER_STEPS / (per_epoch * config.optimization.epochs))
    usual = min(max(usual, _PAPER_RATE), _LARGEST_RATE)
    rows = []
    for rate in (float(f"{factor * usual:.2g}") for factor in _FACTORS):
        optimization = dataclasses.replace(
            config.optimization,
            epochs=epochs,
            warmup_epochs=min(config.optimization.warmup_epochs, epochs // 4),
            base_learning_rate=rate,
        )
        trial = dataclasses.replace(config, optimization=optimization)
        rows.append(_try(trial, strategy, source, steps) | {"base_learning_rate": rate})
        terminal.say(f"Trial of --base_learning_rate={rate:g}: {_shown(rows[-1])}")
    return rows


def _try(
    config: PretrainConfig, strategy: tf.distribute.Strategy, source: Source, num_steps: int
) -> dict[str, float]:
    """Trains for some steps and returns what was reached, by names of metrics."""
    started = time.perf_counter()
    parts = assembly.assemble(config, strategy, source)
    sample = health.Sample(parts, None)
    xla = devices.uses_xla(config.system, strategy)
    steps = list(parts.steps(0, num_steps, xla=xla))
    values, _ = sample.measure()
    last = steps[-len(steps) // 10 :]
    timed = steps[len(steps) // 2 :]
    return values | {
        "steps": len(steps),
        "loss": sum(step["loss"] for step in last) / len(last),
        "feature_std": sum(step["feature_std"] for step in last) / len(last),
        "seconds": time.perf_counter() - started,
        "skipped": sum(step["skipped"] for step in steps),
        "images_per_second": parts.plan.batch_size
        * len(timed)
        / sum(step.seconds for step in timed),
    }


def _best(trials: list[dict[str, float]]) -> dict[str, float]:
    """Returns the trial with the lowest loss among the healthy ones; without any, the first.

    A trial is healthy if no step was skipped, the std is not doubtful, and the effective rank of z
    (of the features, where the method has no z) is at least half of the largest. The loss alone
    would choose a collapse in part.
    """
    rank = "z_effective_rank" if "z_effective_rank" in trials[0] else "effective_rank"
    largest = max(trial[rank] for trial in trials)
    healthy = [
        trial
        for trial in trials
        if not trial["skipped"]
        and trial["feature_std"] >= diagnosis.DOUBTFUL_STD
        and trial[rank] >= largest / 2
    ]
    if not healthy:
        logging.warning("No trial of a learning rate was healthy; the smallest rate is taken")
        return trials[0]
    return min(healthy, key=lambda trial: trial["loss"])


def _reason(best: dict[str, float], trials: list[dict[str, float]]) -> str:
    others = ", ".join(f"{trial['base_learning_rate']:g}" for trial in trials if trial is not best)
    return f"the lowest loss of the healthy trials ({_shown(best)}); tried too: {others}"


def _shown(row: dict[str, float]) -> str:
    return (
        f"loss {row['loss']:.3f}, std {row['feature_std']:.2f}, effective rank of z "
        f"{row.get('z_effective_rank', math.nan):.1f} after {row['steps']} steps"
    )
