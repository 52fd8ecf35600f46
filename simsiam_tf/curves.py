"""Draws the curves of one or more runs from their metrics.jsonl, as in the paper's Figure 2.

python -m simsiam_tf.curves --runs=runs/digits,runs/collapsed --output=curves.png
"""

import dataclasses

from simsiam_tf import flags, schema
from simsiam_tf.schema import setting


@dataclasses.dataclass(frozen=True)
class CurvesConfig(schema.Config):
    """Curves"""

    runs: str = setting("", "Workdirs of the runs to draw, separated by commas.", filled=True)
    output: str = setting("curves.png", "Path of the picture.", filled=True)


def main(config: CurvesConfig) -> None:
    """Writes the picture."""
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.reporting import curve_picture

    curve_picture.write(config.runs.split(","), config.output)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, CurvesConfig)


if __name__ == "__main__":
    command()
