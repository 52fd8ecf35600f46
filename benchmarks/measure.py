"""Measures the sides of a comparison in turn, each in its own process.

A program calls `compare` with the names of the sides. `compare` starts the program again for each
side, and this child calls `serve`. A child prepares and warms up its side once, measures when the
parent asks, and is stopped (SIGSTOP) in between. The libraries therefore do not affect each other,
each side has the whole machine in its turn, and each has its own peak memory.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from importlib import metadata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]


def compare(title, sides, arguments, rounds, unit, peers, output=None):
    """Measures the sides in turn, prints a table and returns the result.

    The ratio of each side is to the fastest of the peers, by the median.

    Args:
      title: the title of the table.
      sides: the names. For each, the program is started with `--side=<name>` and the arguments.
      arguments: the list of the program's arguments.
      rounds: the number of measurements of each side.
      unit: the unit of the measured value; more is better.
      peers: the sides with which the others are compared. If none of them is measured, the first
        side is the peer.
      output: the JSON file to which the result is appended, or None.
    """
    children = {}
    values, facts = {side: [] for side in sides}, {}
    try:
        # One side after the other, because the preparation also takes the whole machine.
        for side in sides:
            children[side] = _start(side, arguments)
            _ask(side, children[side])
        for _ in range(rounds):
            for side, child in children.items():
                answer = _ask(side, child)
                values[side].append(answer.pop("value"))
                facts[side] = answer
    finally:
        for child in children.values():
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    medians = {side: statistics.median(found) for side, found in values.items()}
    peer = max([side for side in sides if side in peers] or sides[:1], key=medians.get)
    rows = {
        side: {
            "median": medians[side],
            "lowest": min(found),
            "highest": max(found),
            "ratio": medians[side] / medians[peer],
            **facts[side],
        }
        for side, found in values.items()
    }
    print(f"\n{title}\n")
    names = list(dict.fromkeys(name for found in facts.values() for name in found))
    columns = ["", unit, "lowest to highest", f"ratio to {peer}", *names]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for side, row in rows.items():
        cells = [f"{row[name]:.0f}" if name in row else "" for name in names]
        cells = [
            side,
            _short(row["median"]),
            f"{_short(row['lowest'])} to {_short(row['highest'])}",
            f"{row['ratio']:.2f}",
            *cells,
        ]
        print(f"| {' | '.join(cells)} |")
    result = {
        "title": title,
        "unit": unit,
        "rounds": rounds,
        "peer": peer,
        "sides": rows,
        "values": values,
        "machine": machine(),
    }
    if output:
        with open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return result


def _short(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def serve(measure):
    """Runs in the child: sends `measure()`, {"value": …, more facts}, whenever the parent asks."""
    answer = answers()
    for _ in sys.stdin:
        answer(measure())


def answers():
    """Returns a child's function that sends a dict to the parent; other output goes to stderr."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda found: print(json.dumps(found), file=pipe, flush=True)


def peak_memory():
    """Returns the peak memory of this process and its children in MB."""
    pids = [os.getpid()]
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
            pids += map(int, file.read().split())
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return total / 1024


def machine():
    """Returns the processor, the number of cores and the package versions."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        models = {line.split(":")[1].strip() for line in file if line.startswith("model name")}
    found = {"processor": ", ".join(models), "cores": os.cpu_count()}
    found["python"] = platform.python_version()
    for package in ("tensorflow", "torch", "numba", "numpy", "pillow", "faiss-cpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _start(side, arguments):
    return subprocess.Popen(
        [sys.executable, sys.argv[0], f"--side={side}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _ask(side, child):
    os.killpg(child.pid, signal.SIGCONT)
    child.stdin.write("\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    os.killpg(child.pid, signal.SIGSTOP)
    if not answer:
        sys.exit(f"{sys.argv[0]}: the process of the side {side} ended; its error is above")
    return json.loads(answer)
