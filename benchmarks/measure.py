"""Ours against a peer: each side in a process of its own, measured by turns.

A program calls `compare` with the name of each side and `serve` in the child that it becomes then:
a side is prepared and warmed up once, measures whenever it is asked, and stands still (SIGSTOP)
meanwhile. So neither library knows of the other, each has the machine to itself in its turn, and
its own peak memory.
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
    """Measures the sides by turns, prints a table and returns it.

    Each side's ratio is to the fastest of the peers, by the median.

    Args:
      title: of the table.
      sides: names; the program is started with `--side=<name>` and the arguments for each.
      arguments: of the program, a list.
      rounds: how often each side is measured.
      unit: of what is measured; more is better.
      peers: sides that the others are compared with; where none of them is measured, the first
        side is the peer.
      output: a JSON file to write, or None.
    """
    children = {}
    values, facts = {side: [] for side in sides}, {}
    try:
        for side in sides:  # one by one, as getting ready takes the whole machine too
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
    """In the child: `measure()` → {"value": …, more facts}, each time that the parent asks."""
    answer = answers()
    for _ in sys.stdin:
        answer(measure())


def answers():
    """In a child: a function that sends a dict to the parent. What else is printed is a message."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda found: print(json.dumps(found), file=pipe, flush=True)


def peak_memory():
    """The most memory that this process and its children held so far, in MB."""
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
    """What the numbers were measured on."""
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
        sys.exit(f"{sys.argv[0]}: the side {side} ended; its error is above")
    return json.loads(answer)
