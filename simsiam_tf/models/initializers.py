"""The reference's initial weights: PyTorch's distributions, drawn by Keras from a given seed."""

import zlib

import keras


def he_normal_fan_out(seed: int, name: str) -> keras.initializers.Initializer:
    """Returns N(0, √(2 / fan_out)), not truncated: torchvision's initializer of convolutions.

    Args:
      seed: seed of the whole network.
      name: name of the weight; each name has its own draws.
    """
    return keras.initializers.VarianceScaling(
        scale=2.0, mode="fan_out", distribution="untruncated_normal", seed=_seed_of(seed, name)
    )


def uniform_fan_in(seed: int, name: str, fan_in: int) -> keras.initializers.Initializer:
    """Returns U(−1/√fan_in, 1/√fan_in): PyTorch's initializer of a linear layer's weight and bias.

    Args:
      seed: seed of the whole network.
      name: name of the weight; each name has its own draws.
      fan_in: number of the layer's inputs.
    """
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound, seed=_seed_of(seed, name))


def _seed_of(seed: int, name: str) -> int:
    """Returns the seed of one weight, which does not depend on the order of the layers."""
    return zlib.crc32(f"{seed}/{name}".encode())
