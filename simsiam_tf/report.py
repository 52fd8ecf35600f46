"""Writes a report on one run or several: an HTML page that opens on any device without a network.

python -m simsiam_tf.report RUN [RUN ...] [--output=FILE]
"""

import dataclasses
import os

from simsiam_tf import flags, schema
from simsiam_tf.schema import setting


@dataclasses.dataclass(frozen=True)
class ReportConfig(schema.Config):
    """Report"""

    run: str = setting("", "Workdir of the run.", filled=True, positional=True)
    others: tuple[str, ...] = setting((), "Workdirs of runs to compare.", positional=True)
    output: str = setting(
        "",
        "Path of the page; empty: report.html in the folder of the run, or comparison.html in the "
        "current folder.",
    )


def main(config: ReportConfig) -> None:
    """Writes the report."""
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.reporting import comparison, html_page, page, record
        from simsiam_tf.runs import run_folder

    if config.others:
        workdirs = [config.run, *config.others]
        runs = [record.read(workdir) for workdir in workdirs]
        text = comparison.render(runs, run_folder.short_names(workdirs))
        html_page.write(config.output or "comparison.html", text)
    else:
        text = page.render(record.read(config.run))
        html_page.write(config.output or os.path.join(config.run, "report.html"), text)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, ReportConfig)


if __name__ == "__main__":
    command()
