"""PyTorch's weights in, and out again.

Importing the package keeps Triton out of the process. PyTorch for GPUs brings it, nothing here
needs it, and loading it where TensorFlow is loaded already ends in a segmentation fault.
"""

import sys

sys.modules.setdefault("triton", None)
