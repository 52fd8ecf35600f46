"""PyTorch's weights in, and out again.

Importing the package keeps Triton out of the process. PyTorch for GPUs brings it, nothing here needs
it, and where TensorFlow is loaded already, loading it ends the process with a segmentation fault.
"""

import sys

sys.modules.setdefault("triton", None)
