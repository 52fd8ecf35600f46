"""Names traced functions by their content, so that all processes share what XLA compiles.

XLA's cache on disk finds a compiled function by its name, among others. TensorFlow ends that name
with the number of everything that the process has traced so far, which differs from test to test.
"""

import hashlib
import itertools

from tensorflow.python.eager import context
from tensorflow.python.eager.polymorphic_function import atomic_function

_from_func_graph = atomic_function.from_func_graph


def _named_by_content(name, graph, *arguments, **options):
    if not name.startswith("__"):  # a branch or a loop, which is looked up by its graph's name
        return _from_func_graph(name, graph, *arguments, **options)
    digest = hashlib.sha256(graph.as_graph_def().SerializeToString(deterministic=True))
    for tensor in [*graph.inputs, *graph.outputs]:
        digest.update(tensor.name.encode())
    stem = f"{name.rpartition('_')[0]}_{digest.hexdigest()[:16]}"
    # The same content may be traced several times, by models that exist at the same time.
    scope = context.context().function_scope_id
    names = (f"{stem}_{number}" for number in itertools.count())
    free = next(
        name
        for name in names
        if (scope, name.encode()) not in atomic_function.RUNTIME_FUNCTION_REFS
    )
    return _from_func_graph(free, graph, *arguments, **options)


atomic_function.from_func_graph = _named_by_content
