"""Compiles a TensorFlow function for a chip that this machine lacks, with XLA's own compiler.

XLA needs a description of the chip, not the chip. TensorFlow gives the function as HLO, and the
packages of JAX contain the compilers. Most of the functions called here are internal to JAX, so
requirements-ahead-of-time.txt pins its version.
"""

import collections
import dataclasses
import math
import os
import re
import time

_FOLDER = os.path.dirname(os.path.abspath(__file__))

# Libraries read these variables when they load; `prepare_environment` sets them before.
_ENVIRONMENT = {
    # Without these, libtpu asks a cloud's metadata server which TPU this machine has.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Several processes may load libtpu, because none of them runs on a TPU.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Without this, the plugin refuses to load without CUDA, which only running a program needs.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}

# Instructions of a compiled GPU program that launch nothing.
_FREE = {
    "parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "opt-barrier",
    "partition-id", "replica-id",
}  # fmt: skip
_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_NUMBER = re.compile(r"([._]\d+)+$")
_OPERAND = re.compile(r"%[\w.\-]+")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|called_computation)=(%[\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's memory, bandwidth and peak rates, from the manufacturer's data sheet."""

    name: str
    platform: str  # JAX's name
    memory: float  # bytes
    bandwidth: float  # bytes/s
    peaks: dict  # {compute dtype: FLOP/s of dense matrix products}


CHIPS = {
    "h100": Chip(
        name="H100",
        platform="cuda",
        memory=84_942_979_072,
        bandwidth=3.35e12,
        # float32 products are computed in TF32.
        peaks={"bfloat16": 989e12, "float16": 989e12, "float32": 494.5e12, "float64": 67e12},
    ),
    "v5e": Chip(
        name="TPU v5e",
        platform="tpu",
        memory=16 * 2**30,
        bandwidth=819e9,
        # float32 products are computed in bfloat16, unless the program asks for more.
        peaks={"bfloat16": 197e12, "float32": 197e12},
    ),
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction of a compiled GPU program that the host launches on the device."""

    opcode: str  # fusion, custom-call, copy
    name: str  # the compiler's name without its number: input_reduce_fusion, __cudnn$convForward
    op_name: str  # name of the TensorFlow operation that it belongs to
    num_bytes: int  # size of its results and operands, or of the slices that it takes of operands


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program according to its compiler; sizes are in bytes."""

    seconds: float  # duration of the compilation
    arguments: int
    temporaries: int
    total: int  # arguments, temporaries, code, and results that do not share memory with arguments
    moved: float  # bytes between the chip and its memory
    flops: float | None  # the compiler's own count; None if it has none
    kernels: list | None  # list of `Kernel`; None if the compiler does not list them
    text: str  # HLO


def prepare_environment():
    """Sets the environment variables of the compilers. Call it before TensorFlow is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def lower(function, *example):
    """Returns the serialised HLO of a `tf.function` with `jit_compile=True`.

    Args:
      function: the function. Variables that it reads or assigns become arguments and results.
      *example: the tensors that are its arguments.
    """
    compiler = function.experimental_get_compiler_ir(*example)
    # Without a device TensorFlow draws a random number, which deterministic operations refuse.
    return compiler(stage="hlo_serialized", device_name="/device:CPU:0")


def compile_for(chip, hlo, **options):
    """Returns the `Program` that XLA compiles for a chip.

    Args:
      chip: one of `CHIPS`.
      hlo: the result of `lower`.
      **options: attributes of XLA's `ExecutableBuildOptions`.
    """
    import jax  # noqa: F401 (must come first, to avoid a circular import inside JAX)
    import numpy as np
    from jaxlib import xla_client

    module = _to_stablehlo(hlo)
    device = _topology(chip).devices[0]
    compile_options = xla_client.CompileOptions()
    compile_options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    for name, value in options.items():
        setattr(compile_options.executable_build_options, name, value)
    started = time.perf_counter()
    executable = device.client.compile(module, xla_client.DeviceList((device,)), compile_options)
    seconds = time.perf_counter() - started

    memory = executable.get_compiled_memory_stats()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = (
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        results + memory.generated_code_size_in_bytes,
    )
    (compiled,) = executable.hlo_modules()
    text = compiled.to_string()
    if chip.platform == "cuda":
        kernels = kernels_of(text)
        moved, flops = sum(kernel.num_bytes for kernel in kernels), None
    else:
        kernels, cost = None, executable.cost_analysis()
        moved, flops = cost["bytes accessed"], cost["flops"]
    return Program(
        seconds=seconds,
        arguments=sizes[0],
        temporaries=sizes[1],
        total=sum(sizes),
        moved=moved,
        flops=flops,
        kernels=kernels,
        text=text,
    )


def _to_stablehlo(hlo):
    """Returns the MLIR module that PJRT's compilers accept for serialised HLO."""
    from jax._src.interpreters import mlir
    from jaxlib import _jax
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        copies = []

        def note(operation):
            if operation.name == "mhlo.copy":
                copies.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(note)
        # An argument that is returned unchanged becomes a copy, which StableHLO does not have.
        for copy in copies:
            with ir.InsertionPoint(copy):
                barrier = stablehlo.OptimizationBarrierOp([copy.operands[0]])
            copy.results[0].replace_all_uses_with(barrier.results[0])
            copy.erase()
        return module


def _topology(chip):
    from jax.experimental import topologies

    if chip.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    import jax_plugins.xla_cuda12  # noqa: F401 (JAX then finds the plugin)

    with open(os.path.join(_FOLDER, "targets", "h100.txtpb"), encoding="ascii") as file:
        description = file.read()
    return topologies.get_topology_desc(
        "h100", platform="cuda", target_config=description, topology="1x1x1"
    )


def kernels_of(text):
    """Returns the kernels of a compiled GPU program, given as HLO text, in scheduled order.

    A called computation (a command buffer, the body of a loop) counts once for each call.
    """
    computations, entry = _computations(text)
    return list(_kernels(computations, entry))


def _kernels(computations, name):
    sizes = {}
    for instruction, shape, opcode, rest in computations[name]:
        sizes[instruction] = num_bytes(shape)
        if opcode in ("call", "while", "conditional"):
            for called in _CALLED.findall(rest):
                yield from _kernels(computations, called)
        elif opcode not in _FREE and not opcode.endswith("-done"):
            operands = _OPERAND.findall(_until_closed(rest))
            moved = sizes[instruction] + sum(sizes[operand] for operand in operands)
            if opcode == "fusion":
                called = computations[_CALLED.search(rest).group(1)]
                moved -= sum(_num_unread_bytes(called, index) for index in range(len(operands)))
            op_name = _OP_NAME.search(rest)
            target = _TARGET.search(rest)
            yield Kernel(
                opcode=opcode,
                name=target.group(1) if target else _NUMBER.sub("", instruction[1:]),
                op_name=op_name.group(1) if op_name else "",
                num_bytes=moved,
            )


def _num_unread_bytes(computation, index):
    """Returns the bytes of a fusion's operand outside the slices that the fusion reads."""
    names, users, whole = set(), [], 0
    for name, shape, opcode, rest in computation:
        if opcode == "parameter" and rest.startswith(f"{index})"):
            names.add(name)
            whole = num_bytes(shape)
        elif names.intersection(_OPERAND.findall(_until_closed(rest))):
            if opcode == "bitcast":
                names.add(name)
            else:
                users.append((shape, opcode))
    if not users or any(opcode not in ("slice", "dynamic-slice") for _, opcode in users):
        return 0
    return max(0, whole - sum(num_bytes(taken) for taken, _ in users))


def _computations(text):
    """Returns {name: [(instruction, shape, opcode, rest of the line)]} and the entry's name."""
    found, entry, current = {}, None, None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.endswith("{"):
            name = _OPERAND.search(line).group()
            current = found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(match.groups())
    return found, entry


def _until_closed(text):
    """Returns the text up to the bracket that closes one opened before the text."""
    depth = 1
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:index]
    return text


def num_bytes(shape):
    """Returns the bytes of an HLO shape such as `bf16[8,16]{1,0}`, or of a tuple of shapes."""
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _bits(dtype) // 8
        for dtype, sizes in _SHAPE.findall(shape)
    )


def _bits(dtype):
    digits = _BITS.search(dtype)
    return int(digits.group()) if digits else 8  # pred has no digits; a token has no brackets


def largest_groups(kernels):
    """Returns [(group, count, bytes)] of kernels, the group with the most bytes first.

    A group has the same kernel name and the same end of the operation's name, without numbers.
    """
    counts, moved = collections.Counter(), collections.Counter()
    for kernel in kernels:
        words = [_NUMBER.sub("", word) for word in kernel.op_name.split("/")]
        words = [word for word in words if word != "PartitionedCall"]
        group = f"{kernel.name}: {'/'.join(words[-2:])}"
        counts[group] += 1
        moved[group] += kernel.num_bytes
    return [(group, counts[group], total) for group, total in moved.most_common()]
