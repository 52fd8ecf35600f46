"""The modules of benchmarks/ that tests import, and the flags of a small network."""

import sys

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # the programs import each other by name

import ahead_of_time
import chips
import graph_operations

__all__ = ["SMALL", "ahead_of_time", "chips", "graph_operations"]

SMALL = {"backbone": "resnet10", "width": 8, "projection_dim": 16, "batch_size": 8}
