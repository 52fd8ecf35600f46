"""The reference's initial weights: PyTorch's laws, drawn by Keras from a stated seed."""

import zlib

import keras


def he_normal_fan_out(seed, name):
    """N(0, √(2 / fan_out)), not truncated: torchvision's law for convolutions."""
    return keras.initializers.VarianceScaling(
        scale=2.0, mode="fan_out", distribution="untruncated_normal", seed=_seed_of(seed, name)
    )


def uniform_fan_in(seed, name, fan_in):
    """U(−1/√fan_in, 1/√fan_in): PyTorch's law for a linear layer's weight and its bias."""
    bound = fan_in**-0.5
    return keras.initializers.RandomUniform(-bound, bound, seed=_seed_of(seed, name))


def _seed_of(seed, name):
    """A seed for each weight by its name, whatever the order in which layers are built."""
    return zlib.crc32(f"{seed}/{name}".encode())
