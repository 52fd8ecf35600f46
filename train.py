"""Pre-trains an encoder on unlabelled images: python train.py --flagfile=configs/digits.cfg

`simsiam_tf/training/__main__.py` is the program; its installed name is simsiam-train.
"""

import sys

try:
    from simsiam_tf.training.__main__ import command
except ImportError as error:  # a package that is missing, or Keras with another backend
    sys.exit(f"train.py: {error}")

if __name__ == "__main__":
    command()
