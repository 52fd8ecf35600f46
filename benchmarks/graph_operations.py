"""Counts the operations that a training step launches outside XLA, from the step's graph.

Called functions are expanded. A function that XLA compiles counts as one launch. Grappler's
rewrites are ignored, except for constant folding: operations that depend only on constants do not
count.
"""

import collections
import dataclasses
import functools

import tensorflow as tf
from tensorflow.python.framework import kernels as registered

# Operations that launch no kernel: they pass a tensor on, change its name or shape, or store it.
FREE = {
    "Const", "Placeholder", "Identity", "IdentityN", "StopGradient", "PreventGradient", "NoOp",
    "Reshape", "ExpandDims", "Squeeze", "EnsureShape", "Shape", "ShapeN", "Size", "Rank",
    "BroadcastGradientArgs", "VarHandleOp", "ReadVariableOp", "AssignVariableOp", "Merge",
    "VariableShape", "ControlTrigger", "_Arg", "_Retval", "FakeParam", "Assert",
}  # fmt: skip
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
# Operations for which the host waits for a value of the device, or which it computes itself.
_WAITS = {
    "PyFunc", "PyFuncStateless", "EagerPyFunc", "If", "StatelessIf", "Case", "StatelessCase",
    "While", "StatelessWhile", "Switch", "Where", "Unique", "UniqueV2", "Print", "PrintV2",
}  # fmt: skip
_FLOATS = {tf.float16, tf.bfloat16, tf.float32, tf.float64}


@dataclasses.dataclass
class Counts:
    """The counts of one replica's training step."""

    launched: float  # operations that launch a kernel, including functions compiled by XLA
    compiled_pieces: float  # functions compiled by XLA
    casts: float  # casts of whole activations from one float type to another
    other_casts: float  # casts of weights, gradients of weights, and images
    host_waits: float
    collectives: float
    broadcasts: float  # tensors copied to another replica's device
    by_type: collections.Counter  # launched operations by type, summed over all replicas


def replicas_on_processors(count):
    """Returns a strategy over logical processors, each of which stands for an accelerator."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(count)])


def count(strategy, step, specs):
    """Traces a step on every replica of a strategy; returns the `Counts` per replica.

    Args:
      strategy: a `tf.distribute.Strategy`.
      step: one replica's step, batch → metrics.
      specs: a batch of `tf.TensorSpec`s.
    """
    replicas = strategy.num_replicas_in_sync

    @tf.function(autograph=False)
    def run(*shares):
        def share(context):
            return shares[context.replica_id_in_sync_group]

        return strategy.run(
            step, args=(strategy.experimental_distribute_values_from_function(share),)
        )

    if replicas == 1:
        run = tf.function(step, autograph=False)
    graph = run.get_concrete_function(*[specs] * replicas).graph
    weights = {tuple(variable.shape) for variable in graph.variables}
    found = list(launched_operations(graph))
    casts = [operation for operation in found if operation.type == "Cast"]
    num_casts = sum(_is_of_activation(cast, weights) for cast in casts)
    types = collections.Counter(_type_of(operation) for operation in found)
    of_one = {
        "launched": len(found),
        "compiled_pieces": sum(map(is_compiled_piece, found)),
        "casts": num_casts,
        "other_casts": len(casts) - num_casts,
        "host_waits": sum(map(makes_the_host_wait, found)),
        "collectives": sum(operation.type.startswith("Collective") for operation in found),
        "broadcasts": _num_copies(graph),
    }
    return Counts(**{name: value / replicas for name, value in of_one.items()}, by_type=types)


def launched_operations(graph):
    """Yields the operations of a graph and of its called functions that launch something."""
    constant = set()
    for operation in needed_operations(graph):
        if operation.type == "Const" or (
            operation.inputs
            and not operation.control_inputs
            and not operation.op_def.is_stateful
            and all(tensor.ref() in constant for tensor in operation.inputs)
        ):
            constant.update(tensor.ref() for tensor in operation.outputs)
            continue
        if operation.type in _CALLS and not is_compiled_piece(operation):
            for called in called_graphs(operation):
                yield from launched_operations(called)
            continue
        for called in () if is_compiled_piece(operation) else called_graphs(operation):
            yield from launched_operations(called)  # branches of a condition, or a loop's body
        if operation.type not in FREE and not runs_in_host_memory(operation):
            yield operation


def needed_operations(graph):
    """Returns the operations that a graph's results and effects need, in graph order."""
    found = set()
    waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
    return [operation for operation in graph.get_operations() if operation in found]


def called_graphs(operation):
    """Returns the graphs of the functions that are attributes of an operation."""
    names = [value.func.name for value in operation.node_def.attr.values() if value.func.name]
    names += [one.name for value in operation.node_def.attr.values() for one in value.list.func]
    functions = [operation.graph._get_function(name) for name in names]
    return [function.graph for function in functions if function is not None]


def is_compiled_piece(operation):
    """Returns whether an operation calls a function that XLA compiles."""
    if operation.type not in _CALLS:
        return False
    if operation.node_def.attr["_XlaMustCompile"].b:
        return True
    function = operation.graph._get_function(operation.node_def.attr["f"].func.name)
    return bool(function and function.cached_definition.attr["_XlaMustCompile"].b)


def makes_the_host_wait(operation):
    """Returns whether the host computes an operation on device values or branches on one."""
    return operation.type in _WAITS or not has_gpu_kernel(operation)


def has_gpu_kernel(operation):
    """Returns whether GPUs have a kernel for an operation's types; function calls need none."""
    return operation.type in _CALLS or any(
        _fits(kernel, operation) for kernel in kernels_for(operation.type, "GPU", "DEFAULT")
    )


def runs_in_host_memory(operation):
    """Returns whether a GPU kernel of an operation only computes host values, such as sizes."""
    found = [one for one in kernels_for(operation.type, "GPU") if _fits(one, operation)]
    names = {output.name for output in operation.op_def.output_arg}
    return bool(found and names and names <= set(found[0].host_memory_arg))


@functools.cache
def kernels_for(op_type, *device_types):
    """Returns the `KernelDef`s of an operation; builds for CPUs list those for GPUs too."""
    found = registered.get_registered_kernels_for_op(op_type).kernel
    return [kernel for kernel in found if kernel.device_type in device_types]


def _fits(kernel, operation):
    attributes = operation.node_def.attr
    return all(
        {attributes[one.name].type, *attributes[one.name].list.type} - {0}
        <= set(one.allowed_values.list.type)
        for one in kernel.constraint
    )


def _is_of_activation(cast, weights):
    """Returns whether a cast converts an activation (rank 4) from one float type to another."""
    before, after = cast.inputs[0], cast.outputs[0]
    is_float = before.dtype in _FLOATS and after.dtype in _FLOATS
    return is_float and after.shape.rank == 4 and tuple(after.shape) not in weights


def _num_copies(graph):
    """Returns the number of copies of a tensor to another replica's device."""
    copies = set()
    for operation in needed_operations(graph):
        for tensor in operation.inputs:
            source, target = tensor.op.device, operation.device
            if source and target and source != target and tensor.op.type != "Placeholder":
                copies.add((tensor.ref(), target))
    return len(copies)


def _type_of(operation):
    return "compiled by XLA" if is_compiled_piece(operation) else operation.type
