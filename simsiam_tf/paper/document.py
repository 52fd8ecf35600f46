"""Writes the results of a report into a Markdown document, and their picture beside it.

python -m simsiam_tf.paper.document --report=runs/paper/digits/report.json --output=docs/paper.md
"""

import dataclasses

from simsiam_tf import flags, schema
from simsiam_tf.schema import setting


@dataclasses.dataclass(frozen=True)
class DocumentConfig(schema.Config):
    """Document"""

    report: str = setting("", "report.json of simsiam_tf.paper.reproduce.", filled=True)
    output: str = setting(
        "docs/paper.md",
        "Markdown file to write the results into. The picture is beside it, as .png.",
        filled=True,
    )


def main(config: DocumentConfig) -> None:
    """Writes the results and the picture."""
    with flags.heavy_imports():  # here, so that a wrong flag is reported without waiting for it
        from simsiam_tf.paper import markdown

    markdown.write(config.report, config.output)


if __name__ == "__main__":
    flags.run(main, DocumentConfig)
