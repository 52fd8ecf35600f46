"""Writes the report: report.json for programs and report.html for people."""

import dataclasses
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from simsiam_tf import files
from simsiam_tf.distribution import devices
from simsiam_tf.paper import findings, intervals, outcomes, page, tables
from simsiam_tf.paper.outcomes import Outcome
from simsiam_tf.paper.scales import SCALES
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
    runs = tables.runs_in(chosen.values())
    found = outcomes.read_outcomes(config.workdir, runs, config.seeds)
    scale = SCALES[config.scale]
    epochs = tables.epochs_of(config.scale)
    described = {
        name: _describe(table, found, findings.judge(table, found, config.seeds, epochs))
        for name, table in chosen.items()
    }
    verdicts = [table["verdict"] for table in described.values()]
    return {
        "scale": config.scale,
        "what": scale.what,
        "epochs_for_100": scale.epochs[0],
        "seeds": config.seeds,
        "run_flags": config.run_flags,
        "rule": findings.RULE,
        "tally": {word: verdicts.count(word) for word in findings.WORDS},
        "tables": described,
        "seconds": sum(seed.seconds for seeds in found.values() for seed in seeds),
        "versions": _versions(config, runs),
        "machine": f"{devices.processor_name()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _describe(
    table: tables.Table, found: findings.Outcomes, verdict: findings.Verdict
) -> dict[str, Any]:
    return {
        "title": table.title,
        "section": table.section,
        "finding": table.finding,
        "verdict": verdict.word,
        "reason": verdict.reason,
        "judged_seeds": verdict.seeds,
        "claims": [_describe_claim(judgement) for judgement in verdict.judgements]
        or [_describe_open(claim) for claim in table.claims],
        "rows": [_describe_row(row, found[row.run]) for row in table.rows],
    }


def _describe_claim(judgement: findings.Judgement) -> dict[str, Any]:
    estimate = judgement.estimate
    width = estimate.half_width(judgement.level)
    return {
        "text": judgement.claim.text,
        "word": judgement.word,
        "unit": judgement.unit,
        "margin": estimate.mean,
        "half_width": width if math.isfinite(width) else None,
        "level": judgement.level,
        "would_decide": judgement.would_decide,
    }


def _describe_open(claim: tables.Claim) -> dict[str, Any]:
    """Describes a claim of which no seed is finished yet."""
    return {
        "text": claim.text,
        "word": "open",
        "unit": outcomes.MEASURES[claim.measure][0],
        **dict.fromkeys(("margin", "half_width", "level")),
        "would_decide": "",
    }


def _describe_row(row: tables.Row, seeds: Sequence[Outcome]) -> dict:
    num_test = next((seed.num_test for seed in seeds if seed.num_test), None)
    counts = dict.fromkeys(("probe", "knn", "knn_before_training"), num_test)
    values = {
        name: summarize([getattr(seed, name) for seed in seeds], counts.get(name))
        for name in (*counts, "std", "loss", "images_per_second")
    }
    values["seconds"] = summarize([seed.seconds if seed.is_over else None for seed in seeds])
    return {
        "label": row.label,
        "run": row.run,
        "paper": row.number,
        "paper_remark": row.remark,
        **values,
        "seeds": [_describe_seed(seed) for seed in seeds],
    }


def _describe_seed(seed: Outcome) -> dict[str, Any]:
    values = dataclasses.asdict(seed)
    del values["misclassified"]  # in the run's folder
    return values | {"collapsed": seed.collapsed}


def summarize(values: Sequence[float | None], num_test: int | None = None) -> dict | None:
    """Summarizes the values that are not None, one for each seed; without any it returns None.

    Args:
      values: of each seed.
      num_test: for accuracies in percent, the number of test images; else None.

    Returns:
      `mean`; `spread`, the sample's standard deviation; `half_width`, half of the 95 % interval of
      the mean over seeds and test images; `count`. A single value has neither spread nor interval.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = statistics.fmean(known)
    error = math.sqrt(mean * (100 - mean) / num_test) if num_test else 0.0
    found = intervals.estimate(known, error)
    return {
        "mean": found.mean,
        "spread": found.deviation,
        "half_width": found.half_width() if len(known) > 1 else None,
        "count": len(known),
    }


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
