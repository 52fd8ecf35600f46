"""The methods by name."""

from simsiam_tf.methods.simsiam import SimSiam

METHODS = {"simsiam": SimSiam}


def build_method(config, encoder, seed):
    """The model that a `MethodConfig` describes, around `encoder`."""
    return METHODS[config.method](config, encoder, seed)
