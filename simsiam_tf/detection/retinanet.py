"""KerasHub's RetinaNet around the weights of an exported encoder.

KerasHub's ResNet is torchvision's, as ours is: symmetric padding, the stride on the 3x3
convolution, epsilon 1e-5. So the weights go over as they are, and the features must be the same.
"""

import math

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from simsiam_tf.data import views
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError

# The largest difference of a feature, as a share of the largest feature. Rounding in float32 makes
# 2e-7 to 6e-7; Keras' own epsilon in one normalization alone, 1e-3 for 1e-5, makes 3e-4.
TOLERANCE = 1e-4
_PRIOR = 0.01  # probability of an object that every anchor begins with
_HEAD_STD = 0.01  # of the heads' initial kernels
_MIN_LEVEL, _MAX_LEVEL = 3, 7
_MIN_CONFIDENCE = 0.05  # of what counts as a detection, as in the RetinaNet paper


def build_backbone(encoder, image_size):
    """KerasHub's ResNet with an encoder's weights.

    Args:
      encoder: a `ResNet` with ImageNet's stem and width 64, the only ones that KerasHub's has.
      image_size: height and width of its input in pixels, an int.

    Returns:
      A `keras_hub.models.ResNetBackbone`, images `[N, H, W, 3]`, normalised, → `[N, h, w, C]`.

    Raises:
      UserError: KerasHub has no such ResNet.
    """
    config = encoder.config
    if (config.stem, config.width) != ("imagenet", 64):
        raise UserError(
            "--encoder must have been trained with --stem=imagenet --width=64, the only ones that "
            f"KerasHub's ResNet has. Received: --stem={config.stem} --width={config.width}"
        )
    bottleneck, depths = resnet.ARCHITECTURES[config.backbone]
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[config.width],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[config.width * 2**stage for stage in range(4)],
        stackwise_num_blocks=list(depths),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block" if bottleneck else "basic_block",
        image_shape=(image_size, image_size, 3),
    )
    pairs = dict(_conv_norms(encoder))
    convolutions = [
        layer.name for layer in backbone.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    if sorted(convolutions) != sorted(f"{name}_conv" for name in pairs):
        raise UserError(
            "KerasHub's ResNet must have a layer for each of the encoder's; install the version of "
            f"requirements-detection.txt. Received: keras_hub {keras_hub.__version__}"
        )
    for name, conv_norm in pairs.items():
        norm = conv_norm.norm
        values = [norm.gamma, norm.beta, norm.running_mean, norm.running_variance]
        backbone.get_layer(f"{name}_conv").set_weights([conv_norm.conv.kernel.numpy()])
        backbone.get_layer(f"{name}_bn").set_weights([value.numpy() for value in values])
    return backbone


def _conv_norms(encoder):
    """(what KerasHub's names of the two layers begin with, our `ConvNorm`) of the whole network."""
    yield "conv1", encoder.stem
    for block in encoder.blocks:
        stage, index = block.name.removeprefix("layer").split("_")
        name = f"stack{int(stage) - 1}_block{index}"
        for number, conv_norm in enumerate(block.conv_norms, start=1):
            yield f"{name}_{number}", conv_norm
        if block.downsample:
            yield f"{name}_0", block.downsample


def check_features(backbone, encode, images):
    """Holds the backbone's pool features against those that the SavedModel itself gives.

    Args:
      backbone: as of `build_backbone`.
      encode: images `[N, H, W, 3]` float32 in [0, 255] → features `[N, F]`.
      images: `[N, H, W, 3]` float32 in [0, 255].

    Returns:
      The largest difference, as a share of the largest feature.

    Raises:
      UserError: it is above `TOLERANCE`.
    """
    # GPUs' TensorFloat-32 would round more than a wrong layer shows.
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    expected = np.asarray(encode(images))
    maps = backbone(views.normalize(images / 255), training=False)
    found = np.asarray(tf.reduce_mean(maps, axis=(1, 2)))
    tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:  # NaN too
        raise UserError(
            f"KerasHub's ResNet must have the encoder's features to {TOLERANCE:g} of the largest. "
            f"Received: a difference of {difference:.2g}, with keras_hub {keras_hub.__version__}"
        )
    return difference


def build_detector(backbone, num_classes):
    """A RetinaNet that begins with a backbone's weights, and is trained but for normalization.

    Batch normalization stays as it was pre-trained, statistics, scale and offset: a batch of
    detection is too small for statistics of its own.

    Args:
      backbone: as of `build_backbone`; it becomes part of the detector.
      num_classes: an int.

    Returns:
      A `keras_hub.models.RetinaNetObjectDetector` of boxes in pixels: left, top, right, bottom.
    """
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    pyramid = keras_hub.models.RetinaNetBackbone(
        backbone,
        min_level=_MIN_LEVEL,
        max_level=_MAX_LEVEL,
        use_p5=True,  # P6 is made of the backbone's last map, as in the paper
        image_shape=backbone.image_shape,
    )
    detector = keras_hub.models.RetinaNetObjectDetector(
        pyramid,
        num_classes,
        bounding_box_format="xyxy",
        prediction_decoder=keras_hub.layers.NonMaxSuppression(
            "xyxy", from_logits=True, confidence_threshold=_MIN_CONFIDENCE
        ),
    )
    # As the RetinaNet paper begins (section 4.1). KerasHub begins with larger kernels, and gives
    # the bias to the boxes instead of the classes.
    for head in (detector.box_head, detector.classification_head):
        for layer in (*head.conv_layers, head.prediction_layer):
            layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=_HEAD_STD))
            layer.bias.assign(keras.ops.zeros_like(layer.bias))
    bias = detector.classification_head.prediction_layer.bias
    bias.assign(keras.ops.full_like(bias, -math.log((1 - _PRIOR) / _PRIOR)))
    return detector


def build_detect(detector, batch_size):
    """What finds objects.

    Args:
      detector: as of `build_detector`.
      batch_size: how many images it takes at once; KerasHub's decoder must know.

    Returns:
      images `[batch_size, H, W, 3]`, normalised → a dict of arrays: `boxes` `[batch_size, 100, 4]`,
      `confidence` and `labels` `[batch_size, 100]`, -1 where there is no more.
    """
    shape = (batch_size, *detector.backbone.image_shape)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def decode(images):
        return detector.decode_predictions(detector(images, training=False), images)

    def detect(images):
        found = decode(images)
        return {name: found[name].numpy() for name in ("boxes", "confidence", "labels")}

    return detect
