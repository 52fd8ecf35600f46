"""The network that `--backbone` names."""

from simsiam_tf.config import EncoderConfig
from simsiam_tf.models.backbone import Backbone
from simsiam_tf.models.resnet import ARCHITECTURES, ResNet


def build(config: EncoderConfig, seed: int, channels: int = 3, image_size: int = 224) -> Backbone:
    """Returns a new network with all its weights.

    Args:
      config: the encoder's settings.
      seed: seed of the initial weights.
      channels: number of channels of the images.
      image_size: height and width of the views, in pixels.

    Raises:
      UserError: the network is not found, cannot be built, or returns no features.
    """
    if config.backbone in ARCHITECTURES:
        return ResNet(config, seed, channels)
    from simsiam_tf.models.keras_backbone import KerasBackbone

    return KerasBackbone(config, seed, channels, image_size)
