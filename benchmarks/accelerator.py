"""Compares a GPU or TPU with the CPU and measures its speed, in ten minutes.

python benchmarks/accelerator.py --output=accelerator.json
python benchmarks/accelerator.py --strategy=tpu --nominal_tflops=275

The program needs no data set: it draws its images from a seed. It first compares the losses of
twenty steps with the CPU's. It then times the run's own loop: for each precision, with and without
XLA and determinism, and with growing batches. It also times views made on the host and on the
device, all devices together, and PyTorch if PyTorch sees the GPU. The most important measurements
come first. The tables mark those that do not fit into --minutes as left out. Each measurement runs
in its own process, so running out of memory ends only that measurement.

The exit status is 1 if a loss differs from the CPU's by more than its bound.
"""

import argparse
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time

import measure

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_device.py")
NO_TIME = "left out: no time left"
LEAST_SECONDS = 5

CHECK_FLAGS = {
    "backbone": "resnet10",
    "width": 16,
    "image_size": 32,
    "projection_dim": 128,
    "projection_hidden_dim": 128,
    "prediction_hidden_dim": 64,
    "base_learning_rate": 0.1,
    "tf32": False,
}
# Bounds of |loss - CPU's loss|: {steps: bound}. Bounds grow with the steps, because training
# amplifies rounding. Two ways of computing on one CPU differ by at most four tenths of them.
FULL, HALF = {5: 1e-4, 20: 1e-2}, {5: 5e-2, 20: 2e-1}
FREE = {"deterministic": "false"}
XLA = FREE | {"xla": "true"}
CHECKS = {
    "float32": ({"deterministic": "true", "xla": "false"}, FULL),
    "float32, XLA": (XLA, FULL),
    "mixed_bfloat16, XLA": (XLA | {"precision": "mixed_bfloat16"}, HALF),
    "mixed_float16, XLA": (XLA | {"precision": "mixed_float16"}, HALF),
}
# The only half precision of TPUs is bfloat16, and TPUs always compile with XLA.
TPU_CHECKS = {
    "float32": (FREE, FULL),
    "mixed_bfloat16": (FREE | {"precision": "mixed_bfloat16"}, HALF),
}

# The makers' rates of dense 16-bit matrix products in TFLOP/s. The first name that is part of the
# device's name applies.
NOMINAL_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "A10G": 70, "A10": 125, "A40": 150, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip

# The network of --tiny, with which the whole program takes five to seven minutes on two cores.
TINY = {
    "backbone": "resnet10",
    "stem": "cifar",
    "width": 8,
    "image_size": 16,
    "projection_dim": 32,
    "projection_hidden_dim": 32,
    "prediction_hidden_dim": 16,
}


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument(
        "--batch_size", type=int, default=64, help="smallest batch that is measured"
    )
    parser.add_argument("--strategy", choices=("default", "tpu"), default="default")
    parser.add_argument(
        "--nominal_tflops", type=float, help="nominal rate of one device for 16-bit products"
    )
    parser.add_argument("--minutes", type=float, default=10, help="time limit of the whole program")
    parser.add_argument("--output", help="JSON file for all results")
    parser.add_argument("--tiny", action="store_true", help="run on a CPU with a tiny network")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    try:
        if options.output:  # reports an unusable path now, not after ten minutes
            open(options.output, "w", encoding="utf-8").close()
        with tempfile.TemporaryDirectory() as folder:
            result = measure_all(options, folder, deadline)
    except OSError as error:
        sys.exit(f"accelerator.py: {error}")
    except KeyboardInterrupt:
        sys.exit("accelerator.py: interrupted")
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
    print_tables(result, options)
    if not all(check["within"] or check["ended"] == NO_TIME for check in result["checks"]):
        sys.exit(
            "accelerator.py: a loss differs from the CPU's or could not be computed; see the first "
            "table"
        )


def measure_all(options, folder, deadline):
    """Returns all results; measurements that were left out have no lines and say why."""
    check = {"kind": "losses", "weights": os.path.join(folder, "weights.npz")}
    cpu = check | {"flags": CHECK_FLAGS}
    cpu_lines, ended = run_process(cpu, deadline, CUDA_VISIBLE_DEVICES="")
    if len(cpu_lines) < 2:
        sys.exit(f"accelerator.py: the losses on the CPU could not be computed: {ended}")
    expected = cpu_lines[1]["losses"]
    device, checks = None, []
    wanted = TPU_CHECKS if options.strategy == "tpu" else CHECKS
    for name in list(wanted)[::2] if options.tiny else wanted:
        flags, bounds = wanted[name]
        flags = CHECK_FLAGS | {"strategy": options.strategy} | flags
        lines, ended = run_process(check | {"flags": flags}, deadline)
        if not device:
            if not lines:
                sys.exit(f"accelerator.py: TensorFlow can use no device: {ended}")
            device = lines[0]["device"]
            if device["kind"] == "CPU" and not options.tiny:
                sys.exit(
                    "accelerator.py: TensorFlow sees no GPU; use --strategy=tpu for a TPU, or "
                    "--tiny to try the program on a CPU"
                )
        found = lines[1]["losses"] if len(lines) > 1 else None
        differences = found and {
            steps: largest_difference(found[:steps], expected[:steps]) for steps in bounds
        }
        checks.append(
            {
                "name": name,
                "losses": found,
                "differences": differences,
                "bounds": bounds,
                "within": bool(found) and all(differences[n] <= bounds[n] for n in bounds),
                "ended": ended,
            }
        )
    measurements = []
    for name, measurement in plan(options, device, folder):
        lines, ended = run_process(measurement, deadline)
        measurements.append({"name": name, **measurement, "lines": lines, "ended": ended})
    return {
        "device": device,
        "machine": measure.machine(),
        "options": vars(options),
        "expected_losses": expected,
        "checks": checks,
        "measurements": measurements,
    }


def largest_difference(found, expected):
    """Returns the largest |a - b|, or NaN, which is within no bound, if a difference is NaN."""
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    return max(differences, key=lambda value: (math.isnan(value), value))


def plan(options, device, folder):
    """Returns the measurements after the losses, [(name, arguments)], most important first."""
    network = TINY if options.tiny else {
        "backbone": options.backbone, "stem": "imagenet", "image_size": options.image_size,
    }  # fmt: skip
    smallest = 4 if options.tiny else options.batch_size
    sizes = [smallest * 2**doubled for doubled in range(2 if options.tiny else 10)]
    length = (
        {"loops": 1, "steps_per_loop": 2} if options.tiny else {"loops": 3, "steps_per_loop": 10}
    )
    photographs = os.path.join(folder, "photographs")

    def speed(batch_sizes, **flags):
        flags = network | {"strategy": options.strategy} | flags
        return {"kind": "speed", "flags": flags, "batch_sizes": batch_sizes, **length}

    def pytorch(compiled):
        return {
            "kind": "pytorch",
            "backbone": network["backbone"],
            "stem": network["stem"],
            "image_size": network["image_size"],
            "batch_sizes": sizes[:1],
            "steps": length["loops"] * length["steps_per_loop"],
            "compiled": compiled,
            "on_cpu": options.tiny,
        }

    best, *others = variants_of(options)
    measurements = [(variant_name(best), speed(sizes, **best))]
    measurements.append(("PyTorch, bfloat16, channels last", pytorch(False)))
    for where in ("host", "device"):
        views = speed(sizes[:1], augment_on=where, **best) | {"photographs": photographs}
        measurements.append((f"{variant_name(best)}; JPEG files, views on the {where}", views))
    many = (512, 128, 64, 10) if options.tiny else (50_000, 10_000, 2048, 200)
    arguments = dict(zip(("bank", "queries", "features", "k"), many, strict=True))
    name = "kNN, queries: bank of {bank} x {features}, k = {k}".format(**arguments)
    measurements.append((name, {"kind": "nearest", **arguments}))
    replicas = 2 if options.tiny else device["count"]
    if replicas > 1 and options.strategy == "default":
        flags = best | {"strategy": "auto"} | ({"cpu_replicas": 2} if options.tiny else {})
        name = f"{variant_name(flags)}; {replicas} replicas"
        measurements.append((name, speed([replicas * smallest], **flags)))
    measurements += [(variant_name(flags), speed(sizes[:1], **flags)) for flags in others]
    measurements.append(("PyTorch, bfloat16, channels last, compiled", pytorch(True)))
    if options.tiny:  # compiling C++ takes longer than all other measurements together
        return measurements[:-1]
    return measurements + [(variant_name(flags), speed(sizes[1:], **flags)) for flags in others]


def variants_of(options):
    """Returns the flags of each precision x XLA x determinism of the device, the best first."""
    precisions, switches = ["mixed_bfloat16", "float32", "mixed_float16"], ["true", "false"]
    if options.tiny:  # half precision is slow on a CPU
        variants = [("float32", "true", "false"), ("mixed_bfloat16", "false", "true")]
    elif options.strategy == "tpu":
        variants = [(precision, "false", "false") for precision in precisions[:2]]
    else:
        variants = itertools.product(precisions, switches[::-1], switches)
    names = ("precision", "deterministic", "xla")
    return [dict(zip(names, variant, strict=True)) for variant in variants]


def variant_name(flags):
    name = flags["precision"]
    name += ", XLA" if flags["xla"] == "true" else ""
    return name + (", deterministic" if flags["deterministic"] == "true" else "")


def run_process(arguments, deadline, **environment):
    """Returns the lines of a measurement's process and why it ended early, "" if it did not."""
    left = deadline - time.monotonic()
    if left < LEAST_SECONDS:
        return [], NO_TIME
    process = subprocess.Popen(
        [sys.executable, PROGRAM, json.dumps(arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, messages = process.communicate(timeout=left)
        ended = ""
    except subprocess.TimeoutExpired:
        process.kill()
        output, messages = process.communicate()
        ended = "stopped: no time left"
    # The last line of a killed process may be incomplete.
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
    if lines and "ended" in lines[-1]:
        return lines[:-1], lines[-1]["ended"]
    if not ended and process.returncode < 0:
        ended = f"killed by signal {-process.returncode}, for example because memory ran out"
    elif not ended and process.returncode:
        ended = last_error(messages)
    return lines, ended


def last_error(messages):
    """Returns the error at the end of a traceback as one short line for a table."""
    lines = messages.strip().splitlines() or ["no message"]
    starts = [number for number, line in enumerate(lines) if re.match(r"[\w.]*Error\b", line)]
    text = " ".join(lines[starts[-1] if starts else -1 :])
    text = re.sub(r"Graph execution error:.*<stack traces unavailable>", "", text)
    text = re.sub(r"^[\w.]*\.", "", text)  # removes the error's module
    return " ".join(text.split()).replace("|", "/")[:160]


def print_tables(result, options):
    device = result["device"]
    nominal = options.nominal_tflops or next(
        (tflops for name, tflops in NOMINAL_TFLOPS.items() if name in device["name"]), None
    )
    print("\n| comparison with the CPU | largest difference | bound | |\n|---|---|---|---|")
    for check in result["checks"]:
        state = "within the bound" if check["within"] else check["ended"] or "**outside the bound**"
        cells = [
            ", ".join(f"{steps} steps: {value:.0e}" for steps, value in (numbers or {}).items())
            for numbers in (check["differences"], check["bounds"])
        ]
        print(f"| {check['name']} | {' | '.join(cells)} | {state} |")

    columns = [
        "batch",
        "images/s",
        "of measured peak",
        "of nominal 16-bit peak",
        "time waiting for images",
        "peak GB",
    ]
    print(f"\n| {device['name']} | {' | '.join(columns)} | |\n|{'---|' * (len(columns) + 2)}")
    for found in result["measurements"]:
        for line in found["lines"]:
            print(f"| {found['name']} | {' | '.join(cells_of(line, nominal))} | |")
        if found["ended"]:
            print(f"| {found['name']} |{' |' * len(columns)} {found['ended']} |")

    print("\nFor README.md, What was run, and where:\n")
    good = sum(check["within"] for check in result["checks"])
    best = result["measurements"][0]
    speeds = [
        f"{line['images_per_second']:.0f} images/s at batch {line['batch_size']}"
        for line in best["lines"]
    ]
    versions = f"TensorFlow {result['machine']['tensorflow']}"
    print(
        f"| {device['name']}, {versions} | losses of twenty steps within the bound in {good} of "
        f"{len(result['checks'])} configurations; {best['flags']['backbone']}, {best['name']}: "
        f"{', '.join(speeds) or best['ended']} |"
    )


def cells_of(line, nominal):
    """Returns a line of a measurement as table cells; a missing number is an empty cell."""
    rate = line.get("images_per_second", line.get("queries_per_second"))
    nominal = nominal and 1e12 * nominal * line.get("replicas", 1)
    of_nominal = nominal and "flops_per_second" in line and line["flops_per_second"] / nominal
    return [
        str(line.get("batch_size", "")),
        f"{rate:.3g}" if rate < 100 else f"{rate:.0f}",
        f"{line['model_flop_utilization']:.0%}" if "model_flop_utilization" in line else "",
        f"{of_nominal:.0%}" if of_nominal else "",
        f"{line['input_wait_fraction']:.0%}" if "input_wait_fraction" in line else "",
        f"{line['peak_gb']:.1f}" if line.get("peak_gb") else "",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
