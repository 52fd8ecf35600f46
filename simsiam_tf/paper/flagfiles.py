"""Writes the flagfile of each run of the paper's tables, configs/paper/<scale>/<run>.cfg.

python -m simsiam_tf.paper.flagfiles
"""

import os

from simsiam_tf import flags, schema
from simsiam_tf.paper import tables
from simsiam_tf.paper.scales import SCALES


class FlagfilesConfig(schema.Config):
    """Flagfiles"""


def main(_: FlagfilesConfig) -> None:
    """Writes all flagfiles."""
    for path, text in build_flagfiles().items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def build_flagfiles() -> dict[str, str]:
    """Returns the text of all flagfiles, by path relative to the root of the repository."""
    return {
        f"configs/{tables.recipe_of(scale_name, run)}.cfg": _text(scale_name, run, recipe, settings)
        for scale_name in SCALES
        for run, (recipe, settings) in tables.build_runs(scale_name).items()
    }


def _text(scale_name: str, run: str, recipe: str, settings: dict[str, object]) -> str:
    scale = SCALES[scale_name]
    shown = [
        (table, row)
        for table in tables.choose_tables(scale_name, "all").values()
        for row in table.rows
        if row.run == run
    ]
    lines = [f"{table.title}: {row.label}" for table, row in shown]
    lines += [
        "",
        f"Command:   python train.py --recipe={tables.recipe_of(scale_name, run)}",
        f"Hardware:  {scale.hardware}",
        "Time:      python -m simsiam_tf.paper.reproduce --dry_run estimates it",
    ]
    lines += [
        f"{head:<11}{_paper_result(row)} ({table.section}); ImageNet, ResNet-50"
        for head, (table, row) in zip(["Expect:", *[""] * len(shown)], shown, strict=False)
    ]
    lines += [
        "Source:    Chen & He, CVPR 2021",
        "",
        "Written by simsiam_tf/paper/flagfiles.py from simsiam_tf/paper/tables.py.",
    ]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    settings = {"recipe": recipe, **settings, "workdir": f"runs/paper/{scale_name}/{run}"}
    return comments + schema.to_flagfile(settings)


def _paper_result(row: tables.Row) -> str:
    if row.number is not None:
        return f"the paper: linear top-1 {row.number} %"
    return f"the paper: {row.remark or 'no number'}"


if __name__ == "__main__":
    flags.run(main, FlagfilesConfig)
