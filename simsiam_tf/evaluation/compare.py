"""Prints a table of results that `evaluate.py` wrote.

python -m simsiam_tf.evaluation.compare runs/*/results/*.json
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from simsiam_tf import flags, schema
from simsiam_tf.schema import UserError, setting

# Columns of the table, in its order; a column that no result has is left out.
_COLUMNS = (
    "protocol",
    "dataset",
    "train_split",
    "eval_split",
    "label_fraction",
    "num_train",
    "top1",
    "top5",
    "effective_rank",
    "rankme",
    "alignment",
    "uniformity",
    "feature_std",
    "seed",
    "encoder_sha256",
)
_HASH_LENGTH = 8


@dataclasses.dataclass(frozen=True)
class CompareConfig(schema.Config):
    """Compare"""

    files: tuple[str, ...] = setting((), "JSON files that evaluate.py wrote.", positional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files:
            raise UserError(
                "Name results to compare, such as runs/*/results/*.json. Received: none"
            )


def main(config: CompareConfig) -> None:
    """Prints the table of the results, then names the files without a result.

    Raises:
      UserError: a file cannot be read or contains no result.
    """
    rows, rejected = [], []
    for path in config.files:
        try:
            rows.append({"file": path, **_read(path)})
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            rejected.append(f"{path} ({reason})")
    if rows:
        print(table(rows), flush=True)
    if rejected:
        raise UserError(
            f"Only results of evaluate.py can be compared. Received: {', '.join(rejected)}"
        )


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of results, padded so that it reads as plain text too.

    Numbers are aligned right, floats have two decimals, and a column without a value is left out.

    Args:
      rows: a dict {column: value} for each result, each with a "file".
    """
    names = ["file", *(name for name in _COLUMNS if any(name in row for row in rows))]
    cells = [[_text(name, row.get(name, "")) for name in names] for row in rows]
    is_number = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, is_number, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, is_number, strict=True)
    ]
    return "\n".join(map(line, [names, rule, *cells]))


def _read(path: str) -> dict[str, Any]:
    """A result merged with its settings; raises `ValueError` if the file contains no result."""
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    if not (isinstance(result, dict) and {"protocol", "settings", "encoder"} <= result.keys()):
        raise ValueError("not a result of evaluate.py")
    return result["settings"] | result


def _text(name: str, value: Any) -> str:
    if name == "encoder_sha256":
        return value[:_HASH_LENGTH]
    if name == "label_fraction":
        return f"{value:g}" if value else ""
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, CompareConfig)


if __name__ == "__main__":
    command()
