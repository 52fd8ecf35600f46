"""The command line: one flag for each setting of a config, and the way into every program.

The only module that uses absl.flags. It imports no TensorFlow, so that `--help` and a wrong flag
are answered at once.
"""

import contextlib
import dataclasses
import difflib
import gc
import logging as standard_logging
import os
import stat
import sys
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping

from absl import app, flags, logging

from simsiam_tf import check_backend, recipes, schema, terminal

FLAGS = flags.FLAGS
_FLAGFILES = """
Flagfiles:
  --flagfile: File with a flag in each line; flags after it on the command line override it.
  --recipe: Flagfile that ships with the package, by its name, such as r50; auto: flags that are
    not given are chosen by the images and short trials.
"""
_HELP = {"-?", "-h", "-help", "--help", "-helpshort", "--helpshort"}
_FULL_HELP = {"-helpfull", "--helpfull"}
# Words that other programs use: word → flag.
_OTHER_WORDS = {
    "lr": "base_learning_rate",
    "wd": "weight_decay",
    "data": "data_dir",
    "input": "data_dir",
    "path": "data_dir",
    "root": "data_dir",
    "output": "workdir",
    "logdir": "workdir",
    "out": "workdir",
    "arch": "backbone",
    "model": "backbone",
    "network": "backbone",
    "encoder": "backbone",
    "amp": "precision",
    "fp16": "precision",
    "bf16": "precision",
    "gpus": "strategy",
    "devices": "strategy",
    "accelerator": "strategy",
    "pretrained": "init_from",
    "weights": "init_from",
    "checkpoint": "init_from",
    "resume": "workdir",
    "crop": "image_size",
    "resolution": "image_size",
    "img": "image_size",
    "bs": "batch_size",
    "dim": "projection_dim",
    "mirror": "flip_probability",
    "config": "flagfile",
}
_MOST_SUGGESTIONS = 3


def run(main: Callable[[typing.Any], None], config_class: type[schema.Config]) -> None:
    """Runs a program: builds its config from the command line, calls `main(config)`, exits.

    A wrong flag ends with one line and status 2, a `UserError` with one line and its own status.
    """
    # Others may not change the files that a program writes.
    os.umask(os.umask(0) | stat.S_IWOTH)
    logging.get_absl_handler().addFilter(_is_shown)
    _define(config_class)
    usage = (sys.modules[main.__module__].__doc__ or "").strip()
    app.run(
        lambda config: _run_main(main, config),
        flags_parser=lambda argv: _parse(argv, config_class, usage),
    )


def _run_main(main: Callable[[typing.Any], None], config: schema.Config) -> None:
    # The log of TensorFlow's C++ code: everything, or only what ends the process.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if _is_verbose() else "3")
    if terminal.is_shown() and not _is_verbose():
        terminal.take_log(_is_shown)
    try:
        check_backend()
    except ImportError as error:
        _exit(error, status=1)
    try:
        main(config)
    except schema.UserError as error:
        _exit(error, error.status)
    except KeyboardInterrupt:  # outside of a training, which saves first
        _exit("Interrupted", status=130)


def _is_verbose() -> bool:
    return FLAGS.is_parsed() and FLAGS.verbosity > 0


def _is_shown(record: standard_logging.LogRecord) -> bool:
    """Whether a line of the log is shown: this package's, and other libraries' warnings.

    TensorFlow Datasets warns of every folder that it is about to fill, so its errors alone count.
    """
    if _is_verbose() or os.path.dirname(__file__) in record.pathname:
        return True
    is_tfds = f"{os.sep}tensorflow_datasets{os.sep}" in record.pathname
    return record.levelno > (standard_logging.WARNING if is_tfds else standard_logging.INFO)


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """A context in which TensorFlow loads without garbage collection and without notes.

    The half million objects that the imports make stay until the program ends. Looking for garbage
    among them takes a second of the imports' four, and later a quarter of a second each time.

    The libraries write notes to file descriptor 2 before their log levels are set. The notes are
    shown with `--verbosity=1`, and if the import fails.
    """
    gc.disable()
    try:
        with contextlib.nullcontext() if _is_verbose() else _without_notes():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """A context in which nothing is written to file descriptor 2 unless an import fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden, open(os.dup(2), "wb") as standard_error:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except schema.UserError:
            raise
        except BaseException:
            hidden.seek(0)
            standard_error.write(hidden.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(standard_error.fileno(), 2)


def read(arguments: list[str], config_class: type[schema.Config]) -> typing.Any:
    """Returns the config that a program would build from command-line arguments.

    Raises:
      UserError: a flag or a recipe is wrong, or a flagfile is missing.
    """
    values = flags.FlagValues()
    _define(config_class, values)
    try:
        return _build(["", *arguments], config_class, values)
    except flags.Error as error:
        raise schema.UserError(" ".join(str(error).split())) from error


def from_keywords(
    settings: Mapping[str, typing.Any], config_class: type[schema.Config]
) -> typing.Any:
    """Returns the config that a program would build from `--name=value` for each keyword.

    Args:
      settings: {flag name: value}. The recipe, if there is one, comes before the others.
      config_class: of the config.

    Raises:
      UserError: as in `read`.
    """
    names = sorted(settings, key=lambda name: name != "recipe")
    flags_of_settings = [f"--{name}={schema.format_value(settings[name])}" for name in names]
    return read(flags_of_settings, config_class)


def _parse(argv: list[str], config_class: type[schema.Config], usage: str) -> typing.Any:
    if _HELP.intersection(argv[1:]) or _FULL_HELP.intersection(argv[1:]):
        is_short = hasattr(config_class, "main_flags") and _HELP.intersection(argv[1:])
        _print(f"{usage}\n{(_main_help if is_short else _help_text)(config_class)}")
        sys.exit(0)
    try:
        return _build(argv, config_class, FLAGS)
    except (flags.Error, schema.UserError) as error:
        _exit(error, status=2)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # as by `| head`: Python's own flush at the end must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _build(
    argv: list[str], config_class: type[schema.Config], values: flags.FlagValues
) -> schema.Config:
    """Builds the config of a command line, whose flags `values` defines."""
    arguments = recipes.expand(argv)
    is_auto = recipes.AUTO in arguments
    try:
        arguments = values([argument for argument in arguments if argument != recipes.AUTO])[1:]
    except flags.UnrecognizedFlagError as error:
        raise flags.Error(_unknown(error.flagname, list(values))) from error
    # A text takes one positional argument, a tuple all that are left.
    positional: dict[str, typing.Any] = {}
    for field in schema.settings_of(config_class):
        if not field.metadata["positional"]:
            continue
        if isinstance(field.default, tuple):
            positional[field.name], arguments = tuple(arguments), []
        elif arguments and not values[field.name].present:
            positional[field.name], *arguments = arguments
    if arguments:
        raise flags.Error(f"Every setting is a flag, --name=value. Received: {' '.join(arguments)}")
    config = schema.build(config_class, values.flag_values_dict() | positional)
    if is_auto:
        if not hasattr(config, "given"):
            raise flags.Error(f"{recipes.AUTO} is for training. Received: {recipes.AUTO}")
        names = schema.flatten(config)
        given = frozenset(name for name in names if values[name].present)
        config = dataclasses.replace(config, given=given)
    return config


def _exit(error: Exception | str, status: int) -> typing.NoReturn:
    program = os.path.basename(sys.argv[0].removesuffix("/__main__.py"))
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def _help_text(config_class: type[schema.Config]) -> str:
    """The flags of a program, group by group."""
    titles = [_title(group) for group in schema.groups_of(config_class).values()]
    if schema.settings_of(config_class):
        titles.insert(0, _title(config_class))
    return "\n".join([*(FLAGS.module_help(title) for title in titles), _FLAGFILES])


def _main_help(config_class: type[schema.Config]) -> str:
    """The flags that most people need, a line each."""
    lines = [""]
    for name, text in config_class.main_flags.items():  # type: ignore[attr-defined]
        default = schema.format_value(FLAGS[name].default)
        lines.append(f"  --{name}: {text}" + (f" ({default})" if default else ""))
    count = len(schema.defaults(config_class))
    lines.append(f"\nIn brackets: the default. --helpfull shows all {count} flags.")
    return "\n".join([*lines, _FLAGFILES])


def _unknown(name: str, known: list[str]) -> str:
    """The message about a flag that does not exist, with those that may be meant."""
    words = set(name.removeprefix("no").split("_")) | set(name.split("_"))
    like = difflib.get_close_matches(name, known, _MOST_SUGGESTIONS, cutoff=0.75)
    meant = [_OTHER_WORDS[word] for word in sorted(words) if word in _OTHER_WORDS]
    sharing = sorted(
        (other for other in known if words <= set(other.split("_"))), key=lambda other: len(other)
    )
    found = list(dict.fromkeys([*like, *sharing, *meant]))[:_MOST_SUGGESTIONS]
    hint = (
        f"Did you mean {' or '.join(f'--{other}' for other in found)}?"
        if found
        else ("--helpfull lists all flags.")
    )
    return f"There is no flag {name!r}. {hint}"


def _title(config_class: type[schema.Config]) -> str:
    return (config_class.__doc__ or "").splitlines()[0]


class _SwitchParser(flags.ArgumentParser):
    """Reads --name and --name=true as "true", --noname and --name=false as "false", and "auto"."""

    def parse(self, argument: str | bool) -> str:
        text = str(argument).lower()
        return {"1": "true", "0": "false"}.get(text, text)


def _define_switch(
    name: str, default: str, text: str, module_name: str, flag_values: flags.FlagValues
) -> None:
    flag = flags.Flag(
        _SwitchParser(), flags.ArgumentSerializer(), name, default, text, boolean=True
    )
    flags.DEFINE_flag(flag, flag_values, module_name)


_DEFINE: dict[type, Callable] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


def _define(config_class: type[schema.Config], values: flags.FlagValues = FLAGS) -> None:
    """Defines a flag for each setting, under its group's title, with the setting's own rule."""
    hints = typing.get_type_hints(config_class)
    for field in schema.settings_of(config_class):
        positional = field.metadata["positional"]
        if positional and isinstance(field.default, tuple):
            continue
        rule = schema.rule_of(field)
        text = field.metadata["help"] + (f" Must be {rule}." if rule else "")
        is_switch = field.metadata["choices"] == schema.SWITCH
        define = _define_switch if is_switch else _DEFINE[hints[field.name]]
        default: typing.Any = field.default
        where: dict[str, typing.Any] = {"module_name": _title(config_class), "flag_values": values}
        define(field.name, default, text, **where)
        if positional:
            continue  # its value is known after all flags; the config checks it
        flags.register_validator(
            field.name,
            lambda value, field=field: schema.accepts(field, value),
            message=f"must be {rule}",
            flag_values=values,
        )
    for group in schema.groups_of(config_class).values():
        _define(group, values)
