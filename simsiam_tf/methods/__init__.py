"""The pre-training methods by name."""

from collections.abc import Callable

import keras

from simsiam_tf.config import MethodConfig
from simsiam_tf.methods import base
from simsiam_tf.methods.alternation import Alternation
from simsiam_tf.methods.byol import Byol
from simsiam_tf.methods.mocov2 import MocoV2
from simsiam_tf.methods.simclr import SimClr
from simsiam_tf.methods.simsiam import SimSiam
from simsiam_tf.methods.supervised import Supervised
from simsiam_tf.methods.swav import Swav
from simsiam_tf.models.backbone import Backbone

METHODS: dict[str, Callable[..., base.SelfSupervisedModel]] = {
    "simsiam": SimSiam,
    "simclr": SimClr,
    "mocov2": MocoV2,
    "byol": Byol,
    "swav": Swav,
    "alternation": Alternation,
    "supervised": Supervised,
}

for _method in METHODS.values():  # `keras.saving.load_model` finds them by name
    keras.saving.register_keras_serializable("simsiam_tf")(_method)


def build_method(
    config: MethodConfig, encoder: Backbone, seed: int, plan: base.Plan | None = None
) -> base.SelfSupervisedModel:
    """Returns the model that `config` describes, with `encoder` in it.

    Args:
      config: the method's settings.
      encoder: network that maps normalised images to features.
      seed: seed of the heads' initial weights.
      plan: size and length of the run; SimSiam does not need it.
    """
    return METHODS[config.method](config, encoder, seed, plan)
