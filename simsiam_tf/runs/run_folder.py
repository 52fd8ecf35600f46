"""The folder of a run: the names of its files, its flags and its metrics."""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from simsiam_tf import files, schema, storage
from simsiam_tf.config import DataConfig, KnnConfig, PretrainConfig
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.schema import UserError

FLAGFILE = "flags.cfg"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
IMAGES = "images.json"  # the size and the pixels of the data set that the run began with
CHOICES = "auto.json"  # of --recipe=auto: each choice with its reason, and the trials
ENCODER = "encoder"
RESULTS = "results"  # a file of each evaluation
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"

# A line of the flagfile of an extended run: what it was planned for, and up to which step.
_SHORTER_PLAN = re.compile(r"# --epochs=(\d+) up to step (\d+)")


def check_workdir(
    config: PretrainConfig, named: str | None = None, *, may_extend: bool = False
) -> None:
    """Makes the workdir of a run.

    Flags that the workdir's flagfile does not name, as after an import, may have any value.

    Args:
      config: of the run.
      named: the workdir as the user named it, where `config` has a local copy. None: no copy.
      may_extend: whether the run in the workdir may have fewer epochs.

    Raises:
      UserError: the folder cannot be written to, or holds a run of another configuration.
    """
    workdir = config.system.workdir
    if storage.is_url(workdir):
        raise UserError(f"Only train.py takes a URL as --workdir. Received: {workdir}")
    try:
        files.make_folder(workdir)
    except OSError as error:
        raise UserError(
            f"--workdir must be a folder that can be written to ({error.strerror}). "
            f"Received: {workdir}"
        ) from error
    there = schema.read_flagfile(_read_flagfile(workdir))
    if "epochs" in there:
        # Runs of earlier versions have these values.
        there = {"schedule": "epoch", "init_from": "", "freeze_stages": "0"} | there
    settings = schema.flatten(config)
    here = {name: schema.format_value(value) for name, value in settings.items()}
    names = [
        name
        for name in sorted(schema.run_defining_names(type(config)))
        if there.get(name, here[name]) != here[name]
    ]
    if may_extend and "epochs" in names:
        if int(there["epochs"]) < int(here["epochs"]):
            names.remove("epochs")
        elif names == ["epochs"]:
            raise UserError(
                f"--epochs must be at least {there['epochs']}, as in the run in "
                f"--workdir={named or workdir}: its learning rates up to now are those of a run of "
                f"that length. Received: {here['epochs']}"
            )
    if names:
        differing = [f"--{name}={there[name]} there, {here[name]} here" for name in names]
        raise UserError(
            f"--workdir={named or workdir} holds a run of another configuration: "
            f"{'; '.join(differing)}. Take another --workdir, or its flags"
        )


def is_finished(config: PretrainConfig) -> bool:
    """Returns whether the run in the workdir has ended, and after as many epochs as wanted."""
    path, wanted = os.path.join(config.system.workdir, SUMMARY), config.optimization.epochs
    if not os.path.exists(path):
        return False
    with open(path, encoding="utf-8") as file:
        return json.load(file).get("epochs", wanted) >= wanted


def write_images(workdir: str, source: Source) -> None:
    """Writes the size of a run's data set for `check_images`, and its pixels for `read_pixels`."""
    here = {
        "images": source.num_examples,
        "classes": list(source.class_names),
        "pixels": dataclasses.asdict(source.pixels),
    }
    files.write_text(os.path.join(workdir, IMAGES), json.dumps(here))


def read_images(workdir: str) -> dict[str, Any]:
    """Returns what `write_images` wrote; empty for imported runs and those of earlier versions."""
    return read_json(os.path.join(workdir, IMAGES))


def read_json(path: str) -> dict[str, Any]:
    """Returns the JSON object of a file; {} without the file."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_pixels(workdir: str) -> Pixels:
    """Returns what the pixels of a run's images are.

    A run of a version that did not write it has RGB of 8 bits, and EXIF's orientation is ignored.
    """
    entries = read_images(workdir).get("pixels")
    return Pixels.from_dict(entries) if entries else RGB


def check_images(workdir: str, source: Source) -> None:
    """Checks that a run resumes on as many images as it began with, of the same classes.

    The order of the images follows from their number. Runs of versions that did not write it are
    not checked.

    Raises:
      UserError: the data set has changed since the run began.
    """
    here = {"images": source.num_examples, "classes": list(source.class_names)}
    there = read_images(workdir)
    for name, value in here.items():
        if there and there[name] != value:
            before, now = str(there[name])[:60], str(value)[:60]
            raise UserError(
                f"The run in --workdir={workdir} began with other {name} ({before}). Train on the "
                f"same data set, or take another --workdir. Received: {now}"
            )


def encoder_folder(path: str) -> str:
    """Returns the folder of the encoder in a run's folder; any other path is returned unchanged."""
    inside = os.path.join(path, ENCODER)
    return inside if os.path.isdir(inside) else path


def read_config(workdir: str, flag: str) -> PretrainConfig:
    """The `PretrainConfig` of the run in a folder, which the user named by a flag."""
    return read_settings(workdir, flag)[1]


def read_settings(workdir: str, flag: str) -> tuple[dict[str, str], PretrainConfig]:
    """The flags of the run in a folder, as its flagfile has them, and their `PretrainConfig`.

    Raises:
      UserError: the folder, which the user named by `--flag`, holds no run.
    """
    try:
        with open(os.path.join(workdir, FLAGFILE), encoding="utf-8") as file:
            text = file.read()
        return schema.read_flagfile(text), schema.from_flagfile(PretrainConfig, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--{flag} must be the folder of a run, with its {FLAGFILE} ({reason}). "
            f"Received: {workdir}"
        ) from error


def write_flags(config: PretrainConfig, step: int, named: str | None = None) -> None:
    """Writes the resolved flags into the workdir, as a flagfile that repeats the run.

    Comments tell the history of an extended run; `read_shorter_plans` reads them.

    Args:
      config: of the run.
      step: the number of steps done before.
      named: the workdir as the user named it, where `config` has a local copy. None: no copy.
    """
    workdir = named or config.system.workdir
    plans = read_shorter_plans(config.system.workdir)
    there = schema.read_flagfile(_read_flagfile(config.system.workdir))
    epochs = int(there.get("epochs", config.optimization.epochs))
    if epochs < config.optimization.epochs:
        plans.append((epochs, step))
    history = "".join(f"# --epochs={epochs} up to step {step}\n" for epochs, step in plans)
    settings = schema.flatten(config) | {"workdir": workdir}
    chosen = read_choices(config.system.workdir).get("choices", {})
    reasons = {name: choice["reason"] for name, choice in chosen.items()}
    text = schema.to_flagfile(settings, reasons)
    files.write_text(os.path.join(config.system.workdir, FLAGFILE), history + text)


def write_choices(
    workdir: str, choices: dict[str, dict[str, Any]], trials: list[dict[str, float]]
) -> None:
    """Writes what `--recipe=auto` chose.

    Args:
      workdir: folder of the run.
      choices: {flag name: {"value": ..., "reason": ...}}.
      trials: the rows of the table of the trials, {name of a metric or flag: number}.
    """
    text = json.dumps({"choices": choices, "trials": trials}, indent=2)
    files.write_text(os.path.join(workdir, CHOICES), text + "\n")


def read_choices(workdir: str) -> dict[str, Any]:
    """Returns {"choices": ..., "trials": ...} as `write_choices` takes them; {} without them."""
    return read_json(os.path.join(workdir, CHOICES))


def short_names(workdirs: Sequence[str]) -> list[str]:
    """Returns names of runs that differ: as many last parts of their folders as that takes."""
    parts = [os.path.normpath(os.path.abspath(path)).split(os.sep) for path in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(workdirs)


def evaluation_command(config: PretrainConfig, workdir: str, named: str | None = None) -> str:
    """Returns the command that evaluates a run on the run's own data.

    Without labels it is the protocol that needs none.

    Args:
      config: of the run.
      workdir: folder of the run.
      named: the folder as the command names it; None: `workdir`.
    """
    data = config.data
    protocol = "knn" if read_images(workdir).get("classes") else "spectrum"
    encoder = f"{named or workdir}/{ENCODER}"
    words = ["python", "evaluate.py", f"--encoder={encoder}", f"--protocol={protocol}"]
    words.append(f"--dataset={data.dataset}")
    if data.data_dir:
        words.append(f"--data_dir={data.data_dir}")
    if data.eval_split != DataConfig.eval_split:
        words.append(f"--eval_split={data.eval_split}")
    if protocol == "knn" and config.knn.knn_k != KnnConfig.knn_k:
        words.append(f"--knn_k={config.knn.knn_k}")
    return shlex.join(words)


def read_shorter_plans(workdir: str) -> list[tuple[int, int]]:
    """Returns what an extended run was planned for before.

    Returns:
      (epochs, last step) of each shorter plan, the oldest first. Empty for any other run.
    """
    matches = _SHORTER_PLAN.findall(_read_flagfile(workdir))
    return [(int(epochs), int(step)) for epochs, step in matches]


def _read_flagfile(workdir: str) -> str:
    """Returns the text of a run's flagfile, "" if it has none."""
    path = os.path.join(workdir, FLAGFILE)
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_metrics(workdir: str, on_damage: Callable[[str], None] | None = None) -> list[dict]:
    """The lines of a run's metrics, dicts with `step` and `epoch`; no lines without a file.

    Args:
      workdir: folder of the run.
      on_damage: called with a description of each line that cannot be read; None: raise.

    Raises:
      UserError: a line is no such JSON object and `on_damage` is None.
    """
    return read_lines(os.path.join(workdir, METRICS), ("step", "epoch"), on_damage)


def read_lines(
    path: str,
    names: tuple[str, ...] = (),
    on_damage: Callable[[str], None] | None = None,
) -> list[dict]:
    """The JSON objects of a file's lines; none where there is no file.

    Args:
      path: the file. A last line without an end is still being written, or a kill cut it off: it is
        left out.
      names: every object must have these.
      on_damage: called with a description of each line that cannot be read; None: raise.

    Raises:
      UserError: a line holds no such object and `on_damage` is None.
    """
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, encoding="utf-8", errors="replace") as file:
        texts = [text for text in file if text.endswith("\n")]
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not line.keys() >= set(names):
                raise ValueError(f"not a JSON object with {' and '.join(names) or 'entries'}")
        except ValueError as error:
            if on_damage is None:
                raise UserError(
                    f"{path} must hold a JSON object with {' and '.join(names) or 'entries'} in "
                    f"every line; mend or remove line {number}. Received: {error}"
                ) from error
            on_damage(f"{os.path.basename(path)}, line {number}, cannot be read: {error}")
        else:
            lines.append(line)
    return lines


def truncate_metrics(workdir: str, last_step: int | None) -> list[dict]:
    """Removes the lines after a step from a run's metrics; None: all. Returns those that stay.

    Raises:
      UserError: a line cannot be read.
    """
    path = os.path.join(workdir, METRICS)
    if last_step is None:
        files.remove(path)
        return []
    lines = [line for line in read_metrics(workdir) if line["step"] <= last_step]
    if os.path.exists(path):
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
