"""The training step of a small network compiles for chips that this machine lacks."""

import importlib.metadata
import os
from unittest import mock

import hand_count
import pytest
import tensorflow as tf
from benchmark_modules import SMALL, ahead_of_time, chips
from conftest import ROOT

NETWORK = SMALL | {"image_size": 32, "prediction_hidden_dim": 32}


@pytest.fixture(scope="module")
def lowered(pretrain_config):
    """Returns a function: stem → config, HLO and FLOP of a small network's step, traced once."""
    # As after any other test of this process that runs a training.
    tf.config.experimental.enable_op_determinism()
    known = {}

    def lower(stem):
        if stem not in known:
            config = pretrain_config(**NETWORK, stem=stem)
            known[stem] = (config, *ahead_of_time.lower_step(config, size=8))
        return known[stem]

    with mock.patch.dict(os.environ):
        chips.prepare_environment()
        yield lower


@pytest.mark.parametrize(
    ("target", "stem"), [("h100", "imagenet"), ("v5e", "imagenet"), ("v5e", "cifar")]
)
def test_a_step_compiles_for_a_chip(lowered, target, stem):
    config, hlo, model_flops = lowered(stem)
    assert model_flops == 2 * 8 * hand_count.flops_of_image(stem, 32)

    chip = chips.CHIPS[target]
    program = chips.compile_for(chip, hlo)
    row = ahead_of_time.chip_row(program, chip, config, 8, model_flops)
    assert row["fits"]
    weights = 4 * 1e-9 * 80_000
    assert weights < row["arguments, GB"] <= row["total, GB"] < 0.1
    assert row["temporaries, GB"] > 0
    assert row["images/s at most, by memory"] > 0
    assert program.moved > 8 * 2 * 32 * 32 * 3
    if target == "h100":
        convolutions = sum(kernel.name.startswith("__cudnn$conv") for kernel in program.kernels)
        # Forward, gradient by the weights and, except for the first layer, gradient by the input.
        assert convolutions == 3 * 12 - 1
        assert row["fusions"] + row["cuDNN, cuBLAS"] <= row["kernels"] < 1000
        groups = chips.largest_groups(program.kernels)
        assert sum(count for _, count, _ in groups) == row["kernels"]
        assert sum(moved for _, _, moved in groups) == program.moved
    else:
        # XLA skips the products with padding, which are a large part for such a small image.
        assert 0.5 * model_flops < program.flops < 1.2 * model_flops


def test_kernels_are_read_from_hlo_text():
    text = """HloModule jit_step, is_scheduled=true

%fused_add (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %add.9 = f32[4]{0} add(%p, %p)
}

%command_buffer (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %loop_add_fusion.2 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused_add, metadata={op_name="net/layer_1/add_2"}
}

ENTRY %main.3 (x: bf16[2,8]) -> f32[4] {
  %x = bf16[2,8]{1,0} parameter(0)
  %conv = (f32[4]{0}, u8[16]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward"
  %gte = f32[4]{0} get-tuple-element(%conv), index=0
  %call.1 = f32[4]{0} call(%gte), to_apply=%command_buffer
  ROOT %copy.1 = f32[4]{0} copy(%call.1)
}
"""  # noqa: E501
    assert chips.kernels_of(text) == [
        chips.Kernel("custom-call", "__cudnn$convForward", "", 16 + 16 + 2 * 32),
        chips.Kernel("fusion", "loop_add_fusion", "net/layer_1/add_2", 16 + 16),
        chips.Kernel("copy", "copy", "", 16 + 16),
    ]
    assert chips.largest_groups(chips.kernels_of(text))[1] == ("loop_add_fusion: layer/add", 1, 32)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target=h1000"], "invalid choice: 'h1000'"),
        ([], "--target"),
        (["--target=graph", "--batchsize=8"], "There is no flag 'batchsize'"),
        (["--target=graph", "--batch_size=9", "--replicas=2"], "divisible by --replicas"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(arguments, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        ahead_of_time.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_the_installed_compilers_have_the_pinned_versions():
    path = ROOT / "benchmarks" / "requirements-ahead-of-time.txt"
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    assert len(pins) == 5
    assert pins == {name: importlib.metadata.version(name) for name in pins}
