"""Evaluates an exported encoder: python evaluate.py --encoder=runs/mine/encoder --protocol=knn

`simsiam_tf/evaluation/__main__.py` is the program; its installed name is simsiam-evaluate.
"""

import sys

try:
    from simsiam_tf.evaluation.__main__ import command
except ImportError as error:  # a package that is missing, or Keras with another backend
    sys.exit(f"evaluate.py: {error}")

if __name__ == "__main__":
    command()
