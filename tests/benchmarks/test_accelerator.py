"""The accelerator program runs on a CPU with a tiny network, and detects wrong losses."""

import importlib
import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import tensorflow as tf
from conftest import ROOT
from programs import Program


@pytest.fixture
def module(monkeypatch):
    """Returns a function that imports a module of benchmarks/ by its name, as the programs do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.long
def test_the_whole_program_runs_on_a_cpu(module, monkeypatch, tmp_path, capsys):
    accelerator = module("accelerator")

    def start(command, env, **pipes):  # TensorFlow is already loaded in this process
        return Program(*command[1:], **env)

    processes = SimpleNamespace(
        Popen=start, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    monkeypatch.setattr(accelerator, "subprocess", processes)
    output = tmp_path / "accelerator.json"
    accelerator.main(["--tiny", "--minutes=20", f"--output={output}"])
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["device"]["kind"] == "CPU"
    assert [check["name"] for check in result["checks"]] == ["float32", "mixed_bfloat16, XLA"]
    for check in result["checks"]:
        assert len(check["losses"]) == len(result["expected_losses"]) == 20
        assert f"| {check['name']} | 5 steps: " in printed
    expected = {
        "float32, deterministic": 2,
        "PyTorch, bfloat16, channels last": 1,
        "float32, deterministic; JPEG files, views on the host": 1,
        "float32, deterministic; JPEG files, views on the device": 1,
        "kNN, queries: bank of 512 x 64, k = 10": 1,
        "float32, deterministic; 2 replicas": 1,
        "mixed_bfloat16, XLA": 1,
    }
    _, speeds = printed.split(" | batch | images/s | ")
    measurements = {found["name"]: found for found in result["measurements"]}
    assert {name: len(found["lines"]) for name, found in measurements.items()} == expected
    for name, found in measurements.items():
        assert found["ended"] == "", name
        assert speeds.count(f"\n| {name} | ") == expected[name]
    first, second = measurements["float32, deterministic"]["lines"]
    assert (first["batch_size"], second["batch_size"]) == (4, 8)
    assert first["images_per_second"] > 0
    assert measurements["float32, deterministic; 2 replicas"]["lines"][0]["replicas"] == 2
    assert "losses of twenty steps within the bound in 2 of 2 configurations; resnet10, " in printed


def answers_of(device, change=lambda losses: losses):
    """Returns a stand-in for `run_process`: losses changed by the device, no time for the rest."""

    def run_process(arguments, deadline, **environment):
        if arguments["kind"] != "losses":
            return [], "left out: no time left"
        losses = [-step / 20 for step in range(20)]
        found = {"kind": device, "name": "NVIDIA H100 80GB HBM3", "count": 1}
        return [{"device": found}, {"losses": losses if environment else change(losses)}], ""

    return run_process


def test_losses_equal_to_the_cpus_are_reported_within_the_bound(module, monkeypatch, capsys):
    accelerator = module("accelerator")
    monkeypatch.setattr(accelerator, "run_process", answers_of("GPU"))
    accelerator.main([])
    output = capsys.readouterr().out
    assert output.count("| within the bound |") == 4
    assert "| mixed_bfloat16, XLA | | | | | | | left out: no time left |" in output


@pytest.mark.parametrize(
    "change",
    [
        lambda losses: [losses[0] + 2e-4, *losses[1:]],
        lambda losses: [*losses[:-1], losses[-1] - 2e-2],
        lambda losses: [*losses[:7], float("nan"), *losses[8:]],
    ],
    ids=["early step", "late step", "NaN"],
)
def test_a_wrong_loss_is_reported_outside_the_bound(module, monkeypatch, capsys, tmp_path, change):
    accelerator = module("accelerator")
    monkeypatch.setattr(accelerator, "run_process", answers_of("GPU", change))
    with pytest.raises(SystemExit, match="a loss differs from the CPU's"):  # status 1
        accelerator.main([f"--output={tmp_path / 'found.json'}"])
    rows = [
        line for line in capsys.readouterr().out.splitlines() if "| **outside the bound** |" in line
    ]
    assert rows[0].startswith("| float32 | ")
    result = json.loads((tmp_path / "found.json").read_text())
    assert not result["checks"][0]["within"]


def test_a_machine_without_an_accelerator_ends_the_program_in_one_line(module, monkeypatch):
    accelerator = module("accelerator")
    monkeypatch.setattr(accelerator, "run_process", answers_of("CPU"))
    with pytest.raises(SystemExit, match=r"^accelerator.py: TensorFlow sees no GPU; .*--tiny"):
        accelerator.main([])


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        ("os.kill(os.getpid(), 9)", "killed by signal 9, for example because memory ran out"),
        ("time.sleep(60)", "stopped: no time left"),
        ("raise ValueError('no such kernel')", "ValueError: no such kernel"),
        ("""print('{"ended": "out of memory"}')""", "out of memory"),
        ("", ""),
    ],
)
def test_the_results_of_a_process_that_ends_early_are_kept(
    module, monkeypatch, tmp_path, last, ended
):
    accelerator = module("accelerator")
    path = tmp_path / "process.py"
    path.write_text(f"import os, time\nprint('{{\"batch_size\": 4}}', flush=True)\n{last}\n")
    monkeypatch.setattr(accelerator, "PROGRAM", str(path))
    seconds = 5.2 if "sleep" in last else 60
    found = accelerator.run_process({}, time.monotonic() + seconds)
    assert found == ([{"batch_size": 4}], ended)
    assert accelerator.run_process({}, time.monotonic()) == ([], accelerator.NO_TIME)


def test_a_graph_execution_error_is_shortened_to_one_line(module):
    messages = """Traceback (most recent call last):
  File "loop.py", line 1, in run
tensorflow.python.framework.errors_impl.UnimplementedError: Graph execution error:

Detected at node gradient_tape/MaxPoolGrad defined at (most recent call last):
<stack traces unavailable>
GPU MaxPool gradient ops do not yet have a deterministic XLA implementation.
\t [[{{node gradient_tape/MaxPoolGrad}}]]
"""
    assert module("accelerator").last_error(messages) == (
        "UnimplementedError: GPU MaxPool gradient ops do not yet have a deterministic XLA "
        "implementation. [[{{node gradient_tape/MaxPoolGrad}}]]"
    )


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_running_out_of_memory_is_reported_as_an_answer(module, monkeypatch, error):
    on_device, found = module("on_device"), []

    def measurement():
        yield {"batch_size": 4}
        raise error

    monkeypatch.setattr(on_device, "KINDS", {"speed": measurement})
    monkeypatch.setattr(on_device.measure, "answers", lambda: found.append)
    on_device.main('{"kind": "speed"}')
    assert found == [{"batch_size": 4}, {"ended": "out of memory"}]


def test_any_other_error_is_raised(module, monkeypatch):
    on_device = module("on_device")

    def measurement():
        yield {}
        raise ValueError("the flags are wrong")

    monkeypatch.setattr(on_device, "KINDS", {"speed": measurement})
    monkeypatch.setattr(on_device.measure, "answers", lambda: lambda found: None)
    with pytest.raises(ValueError, match="the flags are wrong"):
        on_device.main('{"kind": "speed"}')
