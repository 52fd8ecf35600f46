"""Settings of `python -m simsiam_tf.data.inspect`: those of `train.py`, and where the page goes."""

import dataclasses
import os

from simsiam_tf.config import PretrainConfig
from simsiam_tf.schema import UserError, setting


@dataclasses.dataclass(frozen=True)
class InspectConfig(PretrainConfig):
    """Inspection (a flagfile or recipe of train.py is taken too: it says how views are made)"""

    output: str = setting(
        "inspection.html",
        "Page to write; a JSON file of the same name is written beside it.",
        filled=True,
    )
    flagfile_output: str = setting(
        "",
        "Flagfile to write, with the flags that fit the images; empty: suggested.cfg beside the "
        "page.",
    )
    limit: int = setting(
        0,
        "Number of images to read, chosen at random by --seed; 0: all of --train_split.",
        at_least=0,
    )

    @property
    def json_output(self) -> str:
        """Path of the JSON file."""
        return self.output.removesuffix(".html") + ".json"

    @property
    def suggestion_output(self) -> str:
        """Path of the flagfile."""
        beside = os.path.join(os.path.dirname(self.output), "suggested.cfg")
        return self.flagfile_output or beside

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output.endswith(".html"):
            raise UserError(f"--output must end in .html. Received: {self.output}")
