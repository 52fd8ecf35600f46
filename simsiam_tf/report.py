"""Writes a report on one run: an HTML page that opens on any device without a network.

python -m simsiam_tf.report RUN [--output=FILE]
"""

import dataclasses

from simsiam_tf import flags, schema
from simsiam_tf.schema import setting


@dataclasses.dataclass(frozen=True)
class ReportConfig(schema.Config):
    """Report"""

    run: str = setting("", "Workdir of the run.", filled=True, positional=True)
    output: str = setting("", "Path of the page; empty: report.html in the folder of the run.")


def main(config: ReportConfig) -> None:
    """Writes the report."""
    with flags.quiet_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.reporting import page

    page.write(config.run, config.output)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, ReportConfig)


if __name__ == "__main__":
    command()
