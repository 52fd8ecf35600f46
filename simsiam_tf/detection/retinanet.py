"""KerasHub's RetinaNet with the weights of an exported encoder as its backbone.

KerasHub's ResNet computes the same function as this project's, which is torchvision's: symmetric
padding, the stride on the 3x3 convolution, epsilon 1e-5. The weights are therefore copied
unchanged, and both networks must give the same features.
"""

import math
from collections.abc import Callable, Iterator

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from simsiam_tf.data.pixels import RGB
from simsiam_tf.models import resnet
from simsiam_tf.schema import UserError

# The largest accepted difference of a feature, as a fraction of the largest feature. Rounding in
# float32 causes 2e-7 to 6e-7. A single normalization with Keras' epsilon of 1e-3 instead of 1e-5
# causes 3e-4.
TOLERANCE = 1e-4
_PRIOR = 0.01  # initial probability of an object at every anchor
_HEAD_STD = 0.01  # standard deviation of the heads' initial kernels
_MIN_LEVEL, _MAX_LEVEL = 3, 7
_MIN_CONFIDENCE = 0.05  # least confidence of a detection, as in the RetinaNet paper


def build_backbone(encoder: resnet.ResNet, image_size: int) -> keras_hub.models.ResNetBackbone:
    """Returns KerasHub's ResNet with the weights of an encoder.

    Args:
      encoder: a ResNet with ImageNet's stem and width 64; KerasHub's ResNet has no other.
      image_size: height and width of the input in pixels.

    Returns:
      The backbone: normalised images `[N, H, W, 3]` → feature maps `[N, h, w, C]`.

    Raises:
      UserError: KerasHub has no such ResNet.
    """
    config = encoder.config
    if (config.stem, config.width) != ("imagenet", 64):
        raise UserError(
            "--encoder must have been trained with --stem=imagenet --width=64, because KerasHub's "
            "ResNet has no other stem or width. "
            f"Received: --stem={config.stem} --width={config.width}"
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
            "KerasHub's ResNet must have the same convolutions as the encoder; install the version "
            f"in requirements-detection.txt. Received: keras_hub {keras_hub.__version__}"
        )
    for name, conv_norm in pairs.items():
        norm = conv_norm.norm
        values = [norm.gamma, norm.beta, norm.running_mean, norm.running_variance]
        backbone.get_layer(f"{name}_conv").set_weights([conv_norm.conv.kernel.numpy()])
        backbone.get_layer(f"{name}_bn").set_weights([value.numpy() for value in values])
    return backbone


def _conv_norms(encoder: resnet.ResNet) -> Iterator[tuple[str, resnet.ConvNorm]]:
    """Yields each `ConvNorm` of the encoder after KerasHub's common prefix for its two layers."""
    yield "conv1", encoder.stem
    for block in encoder.blocks:
        stage, index = block.name.removeprefix("layer").split("_")
        name = f"stack{int(stage) - 1}_block{index}"
        for number, conv_norm in enumerate(block.conv_norms, start=1):
            yield f"{name}_{number}", conv_norm
        if block.downsample:
            yield f"{name}_0", block.downsample


def check_features(
    backbone: keras_hub.models.ResNetBackbone,
    encode: Callable[[tf.Tensor], tf.Tensor],
    images: tf.Tensor,
) -> float:
    """Returns the largest difference between the features of the backbone and of the SavedModel.

    Args:
      backbone: the result of `build_backbone`.
      encode: the SavedModel, images `[N, H, W, 3]` float32 in [0, 255] → features `[N, F]`.
      images: `[N, H, W, 3]` float32 in [0, 255].

    Returns:
      The largest difference of a pool feature, as a fraction of the largest feature.

    Raises:
      UserError: the difference is above `TOLERANCE`.
    """
    # On GPUs, the rounding of TensorFloat-32 would exceed the error of a wrong layer.
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    expected = np.asarray(encode(images))
    maps = backbone(RGB.normalize(images / 255), training=False)
    found = np.asarray(tf.reduce_mean(maps, axis=(1, 2)))
    tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:  # in this form, NaN is an error too
        raise UserError(
            f"KerasHub's ResNet must give the encoder's features, to {TOLERANCE:g} of the largest "
            f"feature. Received: a difference of {difference:.2g}, with keras_hub "
            f"{keras_hub.__version__}"
        )
    return difference


def build_detector(
    backbone: keras_hub.models.ResNetBackbone, num_classes: int
) -> keras_hub.models.RetinaNetObjectDetector:
    """Returns a RetinaNet that starts from a backbone's weights, with frozen batch normalization.

    Statistics, scales and offsets of the normalization keep their pre-trained values: a batch of
    detection is too small for its own statistics. All other weights are trained.

    Args:
      backbone: the result of `build_backbone`. It becomes part of the detector.
      num_classes: the number of classes.

    Returns:
      The detector. Its boxes are left, top, right, bottom in pixels.
    """
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    pyramid = keras_hub.models.RetinaNetBackbone(
        backbone,
        min_level=_MIN_LEVEL,
        max_level=_MAX_LEVEL,
        use_p5=True,  # P6 is computed from the backbone's last map, as in the paper
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
    # The initialization of the RetinaNet paper (section 4.1). KerasHub's has larger kernels, and
    # sets the prior's bias on the boxes instead of the classes.
    for head in (detector.box_head, detector.classification_head):
        for layer in (*head.conv_layers, head.prediction_layer):
            layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=_HEAD_STD))
            layer.bias.assign(keras.ops.zeros_like(layer.bias))
    bias = detector.classification_head.prediction_layer.bias
    bias.assign(keras.ops.full_like(bias, -math.log((1 - _PRIOR) / _PRIOR)))
    return detector


def build_detect(
    detector: keras_hub.models.RetinaNetObjectDetector, batch_size: int
) -> Callable[[tf.Tensor], dict[str, np.ndarray]]:
    """Returns a function that detects objects in a batch of images.

    Args:
      detector: the result of `build_detector`.
      batch_size: the number of images in every call; KerasHub's decoder needs a fixed size.

    Returns:
      A function: images `[batch_size, H, W, 3]` float32, normalised → a dict of arrays. `boxes` are
      `[batch_size, 100, 4]`, left, top, right, bottom in pixels; `confidence` and `labels` are
      `[batch_size, 100]`, and -1 after the last detection.
    """
    shape = (batch_size, *detector.backbone.image_shape)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def decode(images: tf.Tensor) -> dict:
        return detector.decode_predictions(detector(images, training=False), images)

    def detect(images: tf.Tensor) -> dict[str, np.ndarray]:
        found = decode(images)
        return {name: found[name].numpy() for name in ("boxes", "confidence", "labels")}

    return detect
