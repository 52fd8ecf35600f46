"""The names under which TensorBoard shows the metrics of a run, in groups, and what they mean."""

# TensorBoard sorts capital letters first, so the verdict is the first card. A tag is a picture or a
# text, not both.
VERDICT, VERDICT_TEXT, WARNINGS = "Run/verdict", "Run/verdict_text", "Run/warnings"
VIEW_PAIRS = "views/pairs"

# {metric: (tag, description)}
_TAGS = {
    "loss": ("health/loss", "Of the training batch; SimSiam's goes from 0 to −1."),
    "feature_std": (
        "health/feature_std",
        "Std of z/‖z‖ over the batch, times √d: 1 is healthy, under 0.3 has collapsed.",
    ),
    "knn_top1": (
        "health/knn_top1",
        "Percent of labelled images that their nearest neighbours classify. Step 0 is the random "
        "network.",
    ),
    "effective_rank": (
        "health/effective_rank",
        "Directions that the features of a fixed sample of training images fill.",
    ),
    "z_effective_rank": ("health/z_effective_rank", "The same of the projections z."),
    "alignment": (
        "health/alignment",
        "E‖x − x'‖² of the unit features of two views of the fixed sample.",
    ),
    "z_alignment": ("health/z_alignment", "The same of the projections z."),
    "heldout_z_alignment": (
        "health/heldout_z_alignment",
        "The same of images that are not trained on; far above z_alignment is overfitting.",
    ),
    "singular_values": ("health/singular_values", "Of the features of the fixed sample."),
    "learning_rate": (
        "optimization/learning_rate",
        "With --fix_predictor_learning_rate, that of the predictor stays at the highest value.",
    ),
    "images_per_second": ("speed/images_per_second", "Over all replicas."),
    "input_wait_fraction": (
        "speed/input_wait_fraction",
        "Share of the time in which the devices wait for images.",
    ),
    "processor_use": ("speed/processor_use", "Share of this machine's processors that is busy."),
    "model_flop_utilization": (
        "speed/model_flop_utilization",
        "Arithmetic of the model, as a share of what the devices can do at most.",
    ),
}


def tag_of(metric: str) -> str:
    """Returns the tag of a metric; one without a place of its own is in the group `other`."""
    return _TAGS[metric][0] if metric in _TAGS else f"other/{metric}"


def description_of(metric: str) -> str | None:
    """Returns what a metric is, in a sentence; None if there is none."""
    return _TAGS[metric][1] if metric in _TAGS else None
