"""The report: report.json for programs, report.html for people, which needs no network."""

import dataclasses
import json
import os
import platform
import statistics

from simsiam_tf import files
from simsiam_tf.paper import findings, outcomes, page, tables
from simsiam_tf.runs.run_folder import SUMMARY

HTML, JSON = "report.html", "report.json"


def write(config):
    """Writes the report on what a `ReproduceConfig` asks for, as far as it is done."""
    report = build_report(config)
    files.write_text(os.path.join(config.workdir, JSON), json.dumps(report, indent=2))
    files.write_text(os.path.join(config.workdir, HTML), page.build_html(report, config.workdir))


def build_report(config):
    """What report.json holds, a dict."""
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
        "seconds": sum(one.seconds for of_run in found.values() for one in of_run),
        "versions": _versions(config, runs),
        "machine": _machine(),
    }


def _describe(table, found):
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


def _describe_row(row, found):
    values = {
        name: summarize([getattr(one, name) for one in found])
        for name in ("probe", "knn", "knn_before_training", "std", "loss", "seconds")
    }
    return {
        "label": row.label,
        "run": row.run,
        "paper": row.number,
        "paper_remark": row.remark,
        **values,
        "seeds": [dataclasses.asdict(one) | {"collapsed": one.collapsed} for one in found],
    }


def summarize(values):
    """Mean and spread, the sample's standard deviation, of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.fmean(known), "spread": spread, "count": len(known)}


def _versions(config, runs):
    """The versions that the finished runs were made with, each once."""
    found = []
    for run in runs:
        for seed in range(config.seeds):
            path = os.path.join(outcomes.folder_of(config.workdir, run, seed), SUMMARY)
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    versions = json.load(file)["versions"]
                if versions not in found:
                    found.append(versions)
    return found


def _machine():
    names = []
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores, {platform.system()}"
