"""Writes the report: report.json for programs and report.html for people."""

import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence

from simsiam_tf import files
from simsiam_tf.distribution import devices
from simsiam_tf.paper import findings, outcomes, page, tables
from simsiam_tf.paper.outcomes import Outcome
from simsiam_tf.paper.settings import ReproduceConfig
from simsiam_tf.runs.run_folder import SUMMARY

HTML, JSON = "report.html", "report.json"


def write(config: ReproduceConfig) -> None:
    """Writes both files into the workdir; rows without a finished run are shown as such."""
    report = build_report(config)
    files.write_text(os.path.join(config.workdir, JSON), json.dumps(report, indent=2))
    files.write_text(os.path.join(config.workdir, HTML), page.build_html(report, config.workdir))


def build_report(config: ReproduceConfig) -> dict:
    """Returns the content of report.json."""
    chosen = tables.choose_tables(config.scale, config.table)
    runs = dict.fromkeys(row.run for table in chosen.values() for row in table.rows)
    found = {
        run: [
            outcomes.read_outcome(outcomes.folder_of(config.workdir, run, seed))
            for seed in range(config.seeds)
        ]
        for run in runs
    }
    scale = tables.SCALES[config.scale]
    return {
        "scale": config.scale,
        "what": scale.what,
        "epochs_for_100": scale.epochs[0],
        "seeds": config.seeds,
        "run_flags": config.run_flags,
        "tables": {name: _describe(table, found) for name, table in chosen.items()},
        "seconds": sum(seed.seconds for seeds in found.values() for seed in seeds),
        "versions": _versions(config, runs),
        "machine": f"{devices.processor_name()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _describe(table: tables.Table, found: findings.Outcomes) -> dict:
    verdict = findings.judge(table, found)
    return {
        "title": table.title,
        "section": table.section,
        "finding": table.finding,
        "rule": findings.rule_of(table),
        "verdict": verdict.word,
        "reason": verdict.reason,
        "rows": [_describe_row(row, found[row.run]) for row in table.rows],
    }


def _describe_row(row: tables.Row, seeds: Sequence[Outcome]) -> dict:
    values = {
        name: summarize([getattr(seed, name) for seed in seeds])
        for name in ("probe", "knn", "knn_before_training", "std", "loss", "seconds")
    }
    return {
        "label": row.label,
        "run": row.run,
        "paper": row.number,
        "paper_remark": row.remark,
        **values,
        "seeds": [dataclasses.asdict(seed) | {"collapsed": seed.collapsed} for seed in seeds],
    }


def summarize(values: Sequence[float | None]) -> dict | None:
    """Summarizes the values that are not None: mean, spread and count; None: there are none.

    The spread is the sample's standard deviation; None for a single value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "spread": spread, "count": len(known)}


def _versions(config: ReproduceConfig, runs: Iterable[str]) -> list[dict]:
    """Returns the package versions of the finished runs, without duplicates."""
    found: list[dict] = []
    for run in runs:
        for seed in range(config.seeds):
            path = os.path.join(outcomes.folder_of(config.workdir, run, seed), SUMMARY)
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    versions = json.load(file)["versions"]
                if versions not in found:
                    found.append(versions)
    return found
