"""Looks at every image of a data set before you train on it: a page, numbers and fitting flags.

    python -m simsiam_tf.data.inspect --dataset=folder --data_dir=my_images --output=images.html
    python train.py --recipe=r18 --flagfile=suggested.cfg --workdir=runs/mine

The page shows what the images are, which cannot be read, and which are duplicates; its warnings say
what to do. The numbers are in a JSON file beside it, the flags in suggested.cfg.
"""

from simsiam_tf import flags
from simsiam_tf.data.inspect_settings import InspectConfig


def main(config: InspectConfig) -> None:
    """Writes the page, the numbers and the flags."""
    config.data.check_folder()
    with flags.heavy_imports():  # TensorFlow loads only now, after the flags are checked
        from simsiam_tf.reporting import inspection

    inspection.write(config)


def command() -> None:
    """Runs the program from the command line."""
    flags.run(main, InspectConfig)


if __name__ == "__main__":
    command()
