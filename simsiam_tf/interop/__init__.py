"""Import of PyTorch weights, and export to PyTorch and Detectron2.

Importing this package blocks the import of Triton. PyTorch for GPUs brings Triton, but this package
does not need it. Loading Triton after TensorFlow ends in a segmentation fault.
"""

import sys

# A None in sys.modules makes `import triton` raise ImportError; typeshed does not allow for it.
sys.modules.setdefault("triton", None)  # type: ignore[arg-type]
