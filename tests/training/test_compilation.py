"""XLA compiles the whole step of every shipped flagfile, made small, deterministically."""

import dataclasses
import os

import keras
import pytest
import tensorflow as tf
from conftest import ROOT
from own_networks import EFFICIENT_NET, VIT
from tensorflow.python.distribute import mirrored_run, mirrored_strategy

from simsiam_tf import flags, network_names, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.data import views
from simsiam_tf.distribution import process_state
from simsiam_tf.methods.base import Plan
from simsiam_tf.methods.build import build_model
from simsiam_tf.training import loop

# Sizes that make a flagfile's step small; none of them chooses which operations there are.
SMALL = {
    "backbone": "resnet10",
    "width": 4,
    "image_size": 32,
    "batch_size": 4,
    "projection_dim": 8,
    "projection_hidden_dim": 8,
    "prediction_hidden_dim": 4,
    "epochs": 20,
    "warmup_epochs": 0,
}


def small_config(path, **settings):
    values = schema.flatten(flags.read([f"--flagfile={path}"], PretrainConfig))
    of_method = {"mocov2": {"queue_size": 8}, "swav": {"num_prototypes": 6}}
    small = SMALL | of_method.get(values["method"], {})
    if values["backbone"] not in network_names.RESNETS:
        small["backbone"] = VIT.format(dropout=0)
    return schema.build(PretrainConfig, values | small | settings)


def shipped():
    """{name: config} of every flagfile, of those with the same step only the first."""
    os.chdir(ROOT)
    found = {}
    folders = ROOT / "configs", ROOT / "configs/paper/imagenet"  # the other scales' rows are alike
    for path in (path for folder in folders for path in sorted(folder.glob("*.cfg"))):
        config = small_config(path)
        found.setdefault(kind_of(config), (path.relative_to(ROOT).as_posix(), config))
    return dict(found.values())


def kind_of(config):
    """The settings that choose the operations of a step."""
    method = {
        name: bool(value) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(config.method).items()
        if name != "inner_steps"
    }
    optimization = config.optimization
    return (
        *method.values(),
        config.encoder.backbone,
        config.encoder.stem,
        config.views.augment_on,
        optimization.optimizer,
        optimization.exclude_norm_and_bias,
        optimization.accumulate_steps,
    )


SHIPPED = shipped()


def compile_step(config):
    """XLA's program for the step of a config, from uint8 views to the update."""
    batch = config.optimization.batch_size
    model, _ = build_model(
        config, tf.distribute.get_strategy(), Plan(10 * batch, 5, batch, config.optimization.epochs)
    )
    make_views = views.build_views(config.views, model.num_views)
    image = tf.zeros([40, 40, 3], tf.uint8)
    examples = tf.data.Dataset.range(batch).map(
        lambda index: (
            make_views(image, tf.cast(tf.stack([index, index]), tf.int32))
            | {"index": index, "label": tf.cast(index, tf.int32)}
        )
    )
    example = next(iter(examples.batch(batch)))
    step = tf.function(
        lambda batch: model.train_step(
            loop.prepared(batch, views.prepare, batch["index"].shape[0])
        ),
        jit_compile=True,
        autograph=False,
    )
    return step.experimental_get_compiler_ir(example)(stage="hlo", device_name="/device:CPU:0")


@pytest.fixture(autouse=True)
def _deterministic():
    tf.config.experimental.enable_op_determinism()
    yield
    from tensorflow.python.framework import config as framework

    framework.disable_op_determinism()
    process_state.forget_gradients(process_state.custom_gradients())


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def test_both_stems_and_all_methods_ship():
    configs = SHIPPED.values()
    assert {config.encoder.stem for config in configs} == {"imagenet", "cifar"}
    methods = {config.method.method for config in configs}
    fields = {field.name: field for field in dataclasses.fields(type(next(iter(configs)).method))}
    assert methods == set(fields["method"].metadata["choices"])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_step_of_a_flagfile_compiles(name):
    assert "ENTRY" in compile_step(SHIPPED[name])


@pytest.mark.parametrize(
    "backbone",
    ["keras:MobileNetV2(alpha=0.35)", EFFICIENT_NET, VIT, "own_networks:subclassed"],
)
def test_the_step_of_a_network_of_keras_compiles_with_its_dropout(backbone):
    settings = {"backbone": backbone.format(dropout=0.1), "optimizer": "adamw"}
    config = small_config("configs/digits.cfg", **settings)
    assert "ENTRY" in compile_step(config)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_each_half_precision_compiles_with_views_made_on_the_device(precision, stem, policy):
    policy(precision)
    config = small_config(
        ROOT / "configs/r50.cfg", precision=precision, stem=stem, augment_on="device",
        accumulate_steps=2,
    )  # fmt: skip
    assert "ENTRY" in compile_step(config)


@pytest.mark.parametrize("method", ["simsiam", "simclr", "mocov2", "byol", "swav", "supervised"])
def test_each_methods_imagenet_flagfile_compiles_in_half_precision(method, policy):
    policy("mixed_bfloat16")
    name = "r50.cfg" if method == "simsiam" else f"{method}_r50.cfg"
    config = small_config(ROOT / "configs" / name, precision="mixed_bfloat16")
    assert "ENTRY" in compile_step(config)


@pytest.mark.parametrize(
    "method", ["simsiam", "simclr", "mocov2", "byol", "swav", "supervised", "alternation"]
)
def test_the_step_of_several_gpus_is_traced_under_xla(method, two_replicas, monkeypatch):
    # Logical CPUs stand for the GPUs: only on these XLA takes the collectives of several replicas,
    # and TensorFlow then allows no operation that needs the replicas to meet in Python.
    for module in (mirrored_run, mirrored_strategy):
        monkeypatch.setattr(module, "_is_gpu_device", lambda device: True)
    name = {"simsiam": "r50", "alternation": "paper/imagenet/alternation_10"}
    config = small_config(ROOT / "configs" / f"{name.get(method, f'{method}_r50')}.cfg")
    batch = config.optimization.batch_size
    plan = Plan(10 * batch, 5, batch, config.optimization.epochs)
    model, _ = build_model(config, two_replicas, plan)
    share = {
        "views": (tf.zeros([batch // 2, 32, 32, 3]),) * model.num_views,
        "label": tf.zeros([batch // 2], tf.int32),
        "index": tf.zeros([batch // 2], tf.int64),
    }
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    traced = tf.function(
        lambda: two_replicas.run(step, args=(share,)), autograph=False
    ).get_concrete_function()
    inner = traced.graph._functions.values()  # each replica's step is a function of its own
    operations = [node.op for one in inner for node in one.cached_definition.node_def]
    assert any(operation.startswith("CollectiveReduce") for operation in operations)
