"""The arithmetic of a small SimSiam network, counted by hand."""


def flops_of_image(stem, image_size):
    """Multiplications and additions that one view of an image takes in a training step.

    The network is ResNet-10 of width 8, a projector of 64, 64 and 16, a predictor of 32.
    """
    first = image_size // 2 if stem == "imagenet" else image_size
    kernel = 7 if stem == "imagenet" else 3
    layers = [(first, kernel, 3, 8)]  # spatial size, kernel, in, out
    first = first // 2 if stem == "imagenet" else first  # max-pooling
    channels = 8
    for stage in range(4):
        size, width = first >> stage, 8 << stage
        layers += [(size, 3, channels, width), (size, 3, width, width)]
        if stage > 0:
            layers.append((size, 1, channels, width))
        channels = width
    flops = [2 * size**2 * kernel**2 * inner * outer for size, kernel, inner, outer in layers]
    dims = [(64, 64), (64, 64), (64, 16), (16, 32), (32, 16)]
    flops += [2 * inner * outer for inner, outer in dims]
    # Each has a gradient by its weights, and by its input except at the image.
    return 3 * sum(flops) - flops[0]
