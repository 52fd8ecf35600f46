"""The runs of the paper's tables: their flagfiles, and two training steps of each."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from simsiam_tf import flags, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.methods.base import Plan
from simsiam_tf.methods.build import build_model
from simsiam_tf.paper import flagfiles, tables
from simsiam_tf.paper.scales import SCALES

RUNS = [(scale, run) for scale in SCALES for run in tables.build_runs(scale)]
LARGE_SCALES = ("imagenet", "cifar10")
# The scales differ in the stem and the projector's layers, which test_compilation.py covers, and in
# learning rate and weight decay, which change no operation.
SMALL = {
    "backbone": "resnet10",
    "width": 4,
    "stem": "cifar",
    "projection_layers": 2,
    "image_size": 32,
    "projection_hidden_dim": 16,
    "prediction_hidden_dim": 8,
    "batch_size": 8,
    "epochs": 2,
    "warmup_epochs": 0,
    "base_learning_rate": 0.05,
    "weight_decay": 1e-4,
}
SMALL_OF_METHOD = {"mocov2": {"queue_size": 32}, "swav": {"num_prototypes": 16}}
PLAN = Plan(num_examples=24, num_classes=3, batch_size=8, epochs=2)


def config_of(scale, run):
    """Returns the config that `train.py` builds from a run's flagfile."""
    return flags.read([f"--recipe={tables.recipe_of(scale, run)}"], PretrainConfig)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_committed_flagfiles_equal_the_generated_ones():
    there = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in (ROOT / "configs" / "paper").rglob("*.*")
    }
    assert there == flagfiles.build_flagfiles(), "python -m simsiam_tf.paper.flagfiles"


@pytest.mark.parametrize("scale", SCALES)
def test_every_run_appears_in_a_table_and_every_row_has_a_run(scale):
    rows = [row.run for table in tables.build_tables(scale).values() for row in table.rows]
    assert set(rows) == set(tables.build_runs(scale))


@pytest.mark.parametrize("scale", SCALES)
def test_the_papers_default_batch_and_dimension_are_those_of_simsiam_at_the_scale(scale):
    config = config_of(scale, "simsiam")
    divisors = SCALES[scale]
    assert config.optimization.batch_size == 512 // divisors.batch_divisor
    assert config.method.projection_dim == 2048 // divisors.dim_divisor


@pytest.mark.parametrize(("scale", "run"), RUNS)
def test_a_flagfile_changes_only_the_rows_flags_of_its_recipe(scale, run):
    recipe, changed = tables.build_runs(scale)[run]
    config = config_of(scale, run)
    found = {name: schema.format_value(of) for name, of in schema.flatten(config).items()}
    base = schema.flatten(flags.read([f"--recipe={recipe}"], PretrainConfig))
    expected = {name: schema.format_value(of) for name, of in (base | changed).items()}
    assert found == expected | {"workdir": f"runs/paper/{scale}/{run}"}


@pytest.fixture(scope="module")
def trained():
    """Results by a model's settings, because several rows have the same at the small size."""
    return {}


# The rows of the other scales have the same operations.
@pytest.mark.parametrize(("scale", "run"), [one for one in RUNS if one[0] in LARGE_SCALES])
def test_two_steps_of_every_row_are_finite_and_change_weights(scale, run, trained):
    settings = schema.flatten(config_of(scale, run))
    small = SMALL | SMALL_OF_METHOD.get(settings["method"], {})
    small["projection_dim"] = max(settings["projection_dim"] // 64, 2)
    config = schema.build(PretrainConfig, settings | small)
    key = config.method, config.encoder, config.optimization
    if key not in trained:
        trained[key] = two_steps(config)
    losses, changes = trained[key]
    assert np.isfinite(losses).all()
    assert changes > 0


def two_steps(config):
    """Returns the losses of two steps on noise, and how many learned variables they changed."""
    model, _ = build_model(config, tf.distribute.get_strategy(), PLAN)
    before = [variable.numpy() for variable in model.learned_variables]
    size, count = config.views.image_size, config.optimization.batch_size
    shape = [count, size, size, 3]
    batches = [
        {
            "views": [
                tf.random.stateless_normal(shape, [step, view]) for view in range(model.num_views)
            ],
            "label": tf.range(count) % PLAN.num_classes,
            "index": tf.range(step * count, (step + 1) * count, dtype=tf.int64),
        }
        for step in range(2)
    ]
    if model.freeze_every:
        for offset, batch in enumerate(batches[: model.freeze_every]):
            model.freeze_targets(batch, offset)
    losses = []
    for batch in batches:
        metrics = model.train_step(batch)
        assert not metrics["skipped"]
        losses.append(float(metrics["loss"]))
    after = [variable.numpy() for variable in model.learned_variables]
    return losses, sum((old != new).any() for old, new in zip(before, after, strict=True))
