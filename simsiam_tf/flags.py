"""The command line: one flag for each setting of a config, and the way into every program.

The only module that knows absl.flags. It imports no TensorFlow, so that `--help` and a wrong flag
are answered at once.
"""

import logging as standard_logging
import os
import stat
import sys
import typing
from collections.abc import Callable

from absl import app, flags, logging

from simsiam_tf import schema

FLAGS = flags.FLAGS
_HELP = {"-?", "-h", "-help", "--help", "-helpshort", "--helpshort"}


def run(main, config_class):
    """Runs a program: command line → `config_class` → `main(config)`, then exits.

    A wrong flag ends with one line and status 2, a `UserError` with one line and its own.
    """
    # TensorFlow's C++ notes would bury the one line that matters.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Whatever a program writes, others may not change.
    os.umask(os.umask(0) | stat.S_IWOTH)
    # What other libraries have to say is shown from a warning on.
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno > standard_logging.INFO or os.path.dirname(__file__) in record.pathname
        )
    )
    _define(config_class)
    app.run(
        lambda config: _run_main(main, config),
        flags_parser=lambda argv: _parse(argv, config_class),
    )


def _run_main(main, config):
    try:
        main(config)
    except schema.UserError as error:
        _exit(error, error.status)
    except KeyboardInterrupt:  # where nothing is being trained
        _exit("Interrupted", status=130)


def read(arguments, config_class):
    """The config of a command line's arguments, a list: what a program would make of them.

    Raises:
      UserError: a flag is wrong, or a flagfile is missing.
    """
    values = flags.FlagValues()
    _define(config_class, values)
    try:
        return _build(["", *arguments], config_class, values)
    except (flags.Error, OSError) as error:
        raise schema.UserError(" ".join(str(error).split())) from error


def _parse(argv, config_class):
    if _HELP.intersection(argv[1:]):
        _print_help(config_class)
        sys.exit(0)
    try:
        return _build(argv, config_class, FLAGS)
    except (flags.Error, schema.UserError, OSError) as error:
        _exit(error, status=2)


def _print_help(config_class):
    try:
        print(_help_text(config_class), flush=True)
    except BrokenPipeError:  # `| head` has seen enough; Python's own flush at the end must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _build(argv, config_class, values):
    """The config of a command line, for which `values` has the flags."""
    arguments = values(argv)[1:]
    positional = {}  # one argument is a text's, or all that are left are a tuple's
    for field in schema.settings_of(config_class):
        if not field.metadata["positional"]:
            continue
        if isinstance(field.default, tuple):
            positional[field.name], arguments = tuple(arguments), []
        elif arguments and not values[field.name].present:
            positional[field.name], *arguments = arguments
    if arguments:
        raise flags.Error(f"Every setting is a flag, --name=value. Received: {' '.join(arguments)}")
    return schema.build(config_class, values.flag_values_dict() | positional)


def _exit(error, status):
    program = os.path.basename(sys.argv[0].removesuffix("/__main__.py"))
    print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(status)


def _help_text(config_class):
    """The program's docstring, then its flags, group by group."""
    titles = [_title(group) for group in schema.groups_of(config_class).values()]
    if schema.settings_of(config_class):
        titles.insert(0, _title(config_class))
    usage = (sys.modules["__main__"].__doc__ or "").strip()
    return "\n".join([usage, *(FLAGS.module_help(title) for title in titles)])


def _title(config_class):
    return config_class.__doc__.splitlines()[0]


class _SwitchParser(flags.ArgumentParser):
    """Reads --name and --name=true as "true", --noname and --name=false as "false", and "auto"."""

    def parse(self, argument):
        text = {True: "true", False: "false"}.get(argument, argument)
        return {"1": "true", "0": "false"}.get(text, text)


def _define_switch(name, default, text, module_name, flag_values):
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


def _define(config_class, values=FLAGS):
    """Defines a flag for each setting, under its group's title, with the config's own rule."""
    hints = typing.get_type_hints(config_class)
    for field in schema.settings_of(config_class):
        positional = field.metadata["positional"]
        if positional and isinstance(field.default, tuple):
            continue
        rule = schema.rule_of(field)
        text = field.metadata["help"] + (f" Must be {rule}." if rule else "")
        is_switch = field.metadata["choices"] == schema.SWITCH
        define = _define_switch if is_switch else _DEFINE[hints[field.name]]
        where = {"module_name": _title(config_class), "flag_values": values}
        define(field.name, field.default, text, **where)
        if positional:
            continue  # not known before all flags are; the config checks it
        flags.register_validator(
            field.name,
            lambda value, field=field: schema.accepts(field, value),
            message=f"must be {rule}",
            flag_values=values,
        )
    for group in schema.groups_of(config_class).values():
        _define(group, values)
