"""Numbers traced functions separately for each name, so that processes share what XLA compiles.

XLA's cache on disk finds a compiled function by its name, among others. TensorFlow ends that name
with the number of everything that the process has traced so far, which is another one in every
test.
"""

import collections
import itertools

from tensorflow.python.eager import function
from tensorflow.python.eager.polymorphic_function import concrete_function

_numbers = collections.defaultdict(itertools.count)


def _numbered(prefix):
    return lambda name: f"{prefix}{name}_{next(_numbers[prefix, name])}"


concrete_function._forward_name = _numbered("__forward_")
concrete_function._backward_name = _numbered("__backward_")
concrete_function._inference_name = function._inference_name = _numbered("__inference_")
