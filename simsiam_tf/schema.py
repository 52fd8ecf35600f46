"""Configs: frozen dataclasses of settings, checked when they are made.

`flags.py` turns each field into a flag of the same name, so that each setting is written once.
"""

import dataclasses
import math
import typing

SWITCH = ("auto", "true", "false")  # choices of a flag that may be written without a value


class UserError(ValueError):
    """A mistake that the user can mend. The programs show its text as one line."""

    status = 1  # exit status of the program


class StoppedError(UserError):
    """A signal stopped the run, which is saved. The exit status is 128 + the signal's number."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.status = 128 + number


def one_line(error: BaseException) -> str:
    """Returns the text of an error on one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def setting(
    default: typing.Any,
    help: str,  # noqa: A002 (the word that flags use)
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    filled: bool = False,
    defines_run: bool = True,
    used_by: tuple[str, ...] | None = None,
    positional: bool = False,
) -> typing.Any:
    """Returns a field of a config.

    Args:
      default: value of the setting, whose type it also gives.
      help: one sentence for `--help`.
      at_least: smallest value.
      at_most: largest value.
      above: values must be larger than this.
      below: values must be smaller than this.
      choices: the texts that the setting accepts.
      filled: the text must not be empty.
      defines_run: whether the setting changes what a run computes. A run may be resumed with other
        values of the settings that do not.
      used_by: the choices of `--method` or `--protocol` that use the setting; None: all. The
        metadata of a group of settings may have the same key.
      positional: whether the value may stand on the command line without the flag's name. A tuple
        of texts takes all values that stand there.
    """
    rule = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    metadata = {
        "help": help,
        "bounds": {name: bound for name, bound in rule.items() if bound is not None},
        "choices": choices,
        "filled": filled,
        "defines_run": defines_run,
        "used_by": used_by,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=metadata)


def rule_of(field: dataclasses.Field) -> str:
    """Describes the values that a field accepts; empty if its type says everything."""
    if field.metadata["choices"]:
        return "one of " + ", ".join(field.metadata["choices"])
    if field.metadata["filled"]:
        return "non-empty"
    bounds = field.metadata["bounds"].items()
    return " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds)


def accepts(field: dataclasses.Field, value: typing.Any) -> bool:
    """Whether a field accepts a value: its choices, its bounds, and neither NaN nor infinity."""
    if field.metadata["choices"]:
        return value in field.metadata["choices"]
    if field.metadata["filled"]:
        return bool(value.strip())
    if isinstance(value, float) and not math.isfinite(value):
        return False
    holds = {
        "at_least": lambda bound: value >= bound,
        "at_most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    return all(holds[name](bound) for name, bound in field.metadata["bounds"].items())


@dataclasses.dataclass(frozen=True)
class Config:
    """A group of settings. Construction raises `UserError` on a value outside a field's rule."""

    def __post_init__(self) -> None:
        for field in settings_of(type(self)):
            value = getattr(self, field.name)
            if not accepts(field, value):
                raise UserError(f"--{field.name} must be {rule_of(field)}. Received: {value}")


def settings_of(config_class: type) -> list[dataclasses.Field]:
    """The fields of a config class that are settings themselves, not groups of settings."""
    return [field for field in dataclasses.fields(config_class) if "help" in field.metadata]


def groups_of(config_class: type) -> dict[str, type]:
    """The fields of a config class that are groups of settings: {field name: config class}."""
    hints = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(config_class)]
    return {name: hints[name] for name in names if _is_group(hints[name])}


def _is_group(hint: typing.Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Config)


def flatten(config: Config) -> dict[str, typing.Any]:
    """All settings of a config and of its groups: {flag name: value}, in the order of `--help`."""
    values: dict[str, typing.Any] = {}
    for name in groups_of(type(config)):
        values |= flatten(getattr(config, name))
    return values | {field.name: getattr(config, field.name) for field in settings_of(type(config))}


def defaults(config_class: type) -> dict[str, typing.Any]:
    """The default of every setting: {flag name: value}."""
    values = {field.name: field.default for field in settings_of(config_class)}
    for group in groups_of(config_class).values():
        values |= defaults(group)
    return values


def build(config_class: type, values: dict[str, typing.Any]) -> typing.Any:
    """A config of `config_class` from {flag name: value}; the inverse of `flatten`."""
    groups = {name: build(group, values) for name, group in groups_of(config_class).items()}
    return config_class(
        **groups, **{field.name: values[field.name] for field in settings_of(config_class)}
    )


def refuse_unused(config: Config, chooser: str) -> None:
    """Refuses a setting that the chosen method or protocol does not use.

    Args:
      config: whose settings and groups may name their users, as `used_by` in their metadata.
      chooser: name of the setting that chooses: "method" or "protocol".

    Raises:
      UserError: a setting that the choice does not use differs from its default.
    """
    values, unchanged = flatten(config), defaults(type(config))
    chosen = values[chooser]
    for name, users in _users(type(config)).items():
        if users and chosen not in users and values[name] != unchanged[name]:
            raise UserError(
                f"--{name} is for --{chooser}={' or '.join(users)}. Received: {values[name]} "
                f"with --{chooser}={chosen}"
            )


def _users(config_class, of_group=None):
    """The choices that use each setting, its own or its group's: {flag name: choices or None}."""
    users = {
        field.name: field.metadata["used_by"] or of_group for field in settings_of(config_class)
    }
    groups = groups_of(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in groups:
            users |= _users(groups[field.name], field.metadata.get("used_by", of_group))
    return users


def to_flagfile(
    settings: dict[str, typing.Any], comments: typing.Mapping[str, str] | None = None
) -> str:
    """Returns settings as the text of a flagfile, one `--name=value` a line.

    Args:
      settings: {flag name: value}.
      comments: {flag name: comment}, for lines above some of the flags.
    """
    lines = []
    for name, value in settings.items():
        if comments and name in comments:
            lines.append(f"# {comments[name]}")
        lines.append(f"--{name}={format_value(value)}")
    return "\n".join(lines) + "\n"


def read_flagfile(text: str) -> dict[str, str]:
    """{flag name: value as text} of what `to_flagfile` wrote, and comments."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def from_flagfile(config_class: type, text: str) -> typing.Any:
    """The config of a flagfile; a setting that it does not have keeps its default."""
    types = {name: type(value) for name, value in defaults(config_class).items()}
    values = {
        name: value == "true" if types[name] is bool else types[name](value)
        for name, value in read_flagfile(text).items()
        if name in types
    }
    return build(config_class, defaults(config_class) | values)


def format_value(value: typing.Any) -> str:
    """A setting's value as it is written in a flagfile; floats keep every digit."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return repr(float(value)) if isinstance(value, float) else str(value)


def run_defining_names(config_class: type) -> set[str]:
    """The names of the settings that define what a run computes."""
    names = {field.name for field in settings_of(config_class) if field.metadata["defines_run"]}
    for group in groups_of(config_class).values():
        names |= run_defining_names(group)
    return names
