"""Flagfiles, which may include each other, and the recipes, which are the shipped flagfiles.

A flagfile holds a flag in each line; empty lines and lines that begin with # or // are ignored.
"""

import os
import re
from collections.abc import Iterator, Sequence

from simsiam_tf.schema import UserError

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
# An installed package has the recipes inside, a clone has them beside it.
FOLDER = next(
    filter(
        os.path.isdir, (os.path.join(_PACKAGE, "configs"), os.path.join(_PACKAGE, "../configs"))
    ),
    "",
)
AUTO = "--recipe=auto"  # stays in the arguments: it is no flagfile, but chooses flags by the images
_INCLUSION = re.compile(r"--?(flagfile|recipe)(?:=(.*))?")


def names() -> list[str]:
    """Returns the names of the recipes, such as "byol_r50" and "paper/digits/simsiam"."""
    found = [
        os.path.relpath(os.path.join(folder, file), FOLDER)
        for folder, _, files in os.walk(FOLDER)
        for file in files
    ]
    return sorted(name.removesuffix(".cfg") for name in found if name.endswith(".cfg"))


def path_of(name: str) -> str:
    """Returns the path of a recipe's flagfile.

    Raises:
      UserError: there is no recipe of this name.
    """
    path = os.path.join(FOLDER, f"{name}.cfg")
    if name not in names():
        short = ", ".join(name for name in names() if os.sep not in name)
        raise UserError(f"--recipe must be auto or one of {short}. Received: {name}")
    return path


def expand(arguments: Sequence[str]) -> list[str]:
    """Returns command-line arguments with the lines of each flagfile and recipe in its place.

    `AUTO` stays as it is.

    A flagfile that another one includes is looked for beside that one, then in the current folder.

    Args:
      arguments: flags; arguments after "--" stay as they are.

    Raises:
      UserError: a recipe is unknown, a flagfile cannot be read, or flagfiles include each other in
        a circle.
    """
    return list(_expand(arguments, including=()))


def _expand(arguments: Sequence[str], including: tuple[str, ...]) -> Iterator[str]:
    """Yields the arguments of a command line, or of the last of the `including` flagfiles."""
    left = iter(arguments)
    for argument in left:
        if argument == "--":
            yield from [argument, *left]
            return
        match = _INCLUSION.fullmatch(argument)
        if not match:
            yield argument
            continue
        kind, value = match.groups()
        if value is None:
            value = next(left, "")
        if (kind, value) == ("recipe", "auto"):
            yield AUTO
            continue
        path = path_of(value) if kind == "recipe" else _find(value, including)
        if path in including:
            raise UserError(f"--flagfile must not include itself. Received: {path}")
        yield from _expand(_lines_of(path), (*including, path))


def _find(value: str, including: tuple[str, ...]) -> str:
    path = os.path.expanduser(value)
    beside = os.path.join(os.path.dirname(including[-1]), path) if including else path
    return os.path.abspath(beside if os.path.exists(beside) else path)


def _lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--flagfile must be a text file that can be read ({reason}). Received: {path}"
        ) from error
    return [line for line in lines if line and not line.startswith(("#", "//"))]
