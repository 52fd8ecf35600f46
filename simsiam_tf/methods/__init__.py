"""The methods by name."""

from simsiam_tf.methods.alternation import Alternation
from simsiam_tf.methods.byol import Byol
from simsiam_tf.methods.mocov2 import MocoV2
from simsiam_tf.methods.simclr import SimClr
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.methods.supervised import Supervised
from simsiam_tf.methods.swav import Swav

METHODS = {
    "simsiam": SimSiam,
    "simclr": SimClr,
    "mocov2": MocoV2,
    "byol": Byol,
    "swav": Swav,
    "alternation": Alternation,
    "supervised": Supervised,
}


def build_method(config, encoder, seed, plan=None):
    """The model that a `MethodConfig` describes, around `encoder`.

    Args:
      config: a `MethodConfig`.
      encoder: a `ResNet`, normalised images → features.
      seed: of the heads' initial weights.
      plan: the `Plan` of the run; SimSiam does without.
    """
    return METHODS[config.method](config, encoder, seed, plan)
