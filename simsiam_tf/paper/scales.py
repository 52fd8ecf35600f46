"""The sizes at which the paper's tables run: ImageNet's own, and smaller stand-ins for it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scale:
    """A stand-in for the paper's ImageNet with 100 epochs."""

    what: str
    hardware: str
    simsiam: str  # SimSiam's recipe
    suffix: str  # of the other methods' recipes, <method>_<suffix>
    num_images: int
    epochs: tuple[int, ...]  # for the paper's 100, 200, 400 and 800
    warms_up: bool  # all runs warm up for a tenth of their epochs; False: only large batches do
    batch_divisor: int  # the paper's batch sizes are divided by it
    dim_divisor: int  # the paper's dimensions of z are divided by it
    inner_steps: tuple[str, ...]  # for the paper's 1, 10, 100 and epoch


SCALES = {
    "imagenet": Scale(
        what="ImageNet, ResNet-50, as in the paper",
        hardware="8 GPUs in the paper (--strategy=auto uses all of them); we have not run it",
        simsiam="r50",
        suffix="r50",
        num_images=1_281_167,
        epochs=(100, 200, 400, 800),
        warms_up=False,
        batch_divisor=1,
        dim_divisor=1,
        inner_steps=("1", "10", "100", "epoch"),
    ),
    "cifar10": Scale(
        what="CIFAR-10, ResNet-18 with the CIFAR stem",
        hardware="designed for one GPU; we have none and have not run it to completion",
        simsiam="cifar10",
        suffix="cifar10",
        num_images=50_000,
        epochs=(200, 400, 800, 1600),
        warms_up=False,
        batch_divisor=1,
        dim_divisor=1,
        inner_steps=("1", "10", "100", "epoch"),
    ),
    "cifar10_small": Scale(
        what="10,000 images of CIFAR-10, ResNet-18 of a quarter of the width with the CIFAR stem",
        hardware="any CPU",
        simsiam="cifar10_small",
        suffix="cifar10_small",
        num_images=10_000,
        epochs=(10, 15, 20, 30),
        warms_up=True,
        batch_divisor=4,
        dim_divisor=4,
        inner_steps=("1", "5", "20", "epoch"),  # an epoch has 78 steps
    ),
    "digits": Scale(
        what="the embedded digits, ResNet-18 of a quarter of the width",
        hardware="any CPU",
        simsiam="digits",
        suffix="digits",
        num_images=1_437,
        epochs=(20, 30, 40, 60),
        warms_up=True,
        batch_divisor=4,
        dim_divisor=16,
        inner_steps=("1", "2", "5", "epoch"),  # an epoch has 11 steps
    ),
}
