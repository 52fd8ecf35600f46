"""Writes one HTML page on a run, which opens anywhere, without a network.

python -m simsiam_tf.report RUN [--output=FILE]
"""

import dataclasses

from simsiam_tf import flags, schema
from simsiam_tf.schema import setting


@dataclasses.dataclass(frozen=True)
class ReportConfig(schema.Config):
    """Report"""

    run: str = setting("", "Workdir of the run.", filled=True, positional=True)
    output: str = setting("", "The page's file; empty: report.html in the run's folder.")


def main(config):
    # TensorFlow loads only now, after the flags are checked.
    from simsiam_tf.reporting import page

    page.write(config.run, config.output)


if __name__ == "__main__":
    flags.run(main, ReportConfig)
