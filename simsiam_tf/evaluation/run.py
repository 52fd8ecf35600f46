"""What `evaluate.py` does, from top to bottom."""

import dataclasses
import json
import os
import typing

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf.config import SystemConfig
from simsiam_tf.data import datasets, views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.distribution import devices
from simsiam_tf.evaluation import (
    encoding,
    feature_cache,
    feature_file,
    features,
    finetune,
    knn,
    linear,
    probe,
    spectrum,
)
from simsiam_tf.export import saved_model
from simsiam_tf.schema import UserError


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """What is evaluated, and how images are given to it."""

    path: str
    sha256: str
    encode: typing.Callable  # images [b, size, size, 3] in [0, 255] → features [b, F]
    image_size: int
    crop_ratio: float
    strategy: tf.distribute.Strategy  # whose replicas share the work

    def view(self, image):
        return views.build_evaluation_view(self.image_size, self.crop_ratio)(image)


def run(config):
    """Evaluates an encoder as an `EvaluationConfig` says; prints and writes the result."""
    _check_output(config.output)
    encoder = _load_encoder(config, _build_strategy(config.devices))
    if config.protocol != "finetune":  # its encoder changes, so it keeps no features
        feature_cache.check(_cache_folder(config))
    unlabelled = {"spectrum": _describe, "features": _extract}
    if config.protocol in unlabelled:
        config = _of_whole_folder(config)
    evaluate = unlabelled.get(config.protocol, _classify)
    found, settings, sources = evaluate(config, encoder)
    result = {
        "protocol": config.protocol,
        **found,
        "dataset": config.data.dataset,
        **{split: getattr(config.data, split) for split in sources},
        "fingerprints": {split: source.fingerprint() for split, source in sources.items()},
        "settings": settings | _view_settings(config, encoder) | {"seed": config.seed},
        "encoder": encoder.path,
        "encoder_sha256": encoder.sha256,
        "versions": saved_model.versions(),
    }
    if config.protocol == "features":
        _write_features(config, encoder, sources["eval_split"], result)
    elif config.output:
        with open(config.output, "w", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    # A number for each feature is for the file alone.
    short = {name: value for name, value in result.items() if not isinstance(value, list)}
    print(json.dumps(short), flush=True)


def _build_strategy(config):
    """The strategy of a `DevicesConfig`, on the devices of this machine."""
    if config.strategy == "multi_worker":
        raise UserError(
            "An evaluation is one process; --strategy=mirrored takes all GPUs of a machine. "
            "Received: --strategy=multi_worker"
        )
    if config.strategy == "auto" and "TF_CONFIG" in os.environ:  # it may name other workers
        config = dataclasses.replace(config, strategy="mirrored")
    return devices.build_strategy(SystemConfig(**dataclasses.asdict(config)))


def _load_encoder(config, strategy):
    with strategy.scope():
        encode, description = saved_model.load(config.encoder)
    image_size = config.image_size or description.get("image_size")
    if not image_size:
        raise UserError(
            f"{config.encoder} has no {saved_model.DESCRIPTION}, so --image_size must be given. "
            "Received: 0"
        )
    return _Encoder(
        path=os.path.abspath(config.encoder),
        sha256=feature_cache.hash_of_folder(os.path.abspath(config.encoder)),
        encode=encoding.on_all_replicas(strategy, encode, config.feature_batch_size),
        image_size=image_size,
        crop_ratio=config.eval_crop_ratio or description.get("eval_crop_ratio", 0.875),
        strategy=strategy,
    )


def _classify(config, encoder):
    """How many images of the evaluation split a classifier has right; it has not seen them."""
    data = config.data
    train = _load_labelled(data, data.train_split)
    test = _load_labelled(data, data.eval_split)
    if train.class_names != test.class_names:
        raise UserError(
            f"--train_split and --eval_split must have the same classes. Received: {train.name} "
            f"and {test.name}"
        )
    logging.info(
        "Protocol %s: %d training, %d test images",
        config.protocol,
        train.num_examples,
        test.num_examples,
    )
    protocols = {"knn": _knn, "probe": _probe, "linear": _linear, "finetune": _finetune}
    protocol = protocols[config.protocol]
    scores, labels, found, settings = protocol(config, encoder, train, test)
    num_classes = len(train.class_names)
    found = {
        "top1": knn.top_k_accuracy(scores, labels, 1),
        "top5": knn.top_k_accuracy(scores, labels, min(5, num_classes)),
        "num_test": len(labels),
        "num_classes": num_classes,
        **found,
    }
    return found, settings, {"train_split": train, "eval_split": test}


def _knn(config, encoder, train, test):
    queries, labels, _ = _features_of(config, encoder, test)
    bank, bank_labels, _ = _features_of(config, encoder, train)
    settings = config.knn
    votes = knn.class_votes(
        bank,
        bank_labels,
        queries,
        len(train.class_names),
        settings.knn_k,
        settings.knn_temperature,
    )
    return votes, labels, {"num_train": len(bank)}, dataclasses.asdict(settings)


def _probe(config, encoder, train, test):
    test_features, labels, _ = _features_of(config, encoder, test)
    train_features, train_labels, _ = _features_of(config, encoder, train)
    classifier = probe.train_classifier(
        train_features, train_labels, len(train.class_names), config.probe, config.seed
    )
    names = ("learning_rate", "weight_decay", "held_out_top1")
    found = {
        "num_train": len(train_features),
        "chosen": {name: getattr(classifier, name) for name in names},
    }
    return classifier(test_features), labels, found, dataclasses.asdict(config.probe)


def _linear(config, encoder, train, test):
    test_features, labels, _ = _features_of(config, encoder, test)
    quarantine = Quarantine(train, config.data)
    classifier = linear.train_classifier(
        encoder.encode,
        test_features.shape[1],
        train,
        _crops(config, encoder),
        config.linear,
        config.seed,
        quarantine,
    )
    found = {"num_train": train.num_examples - quarantine.num_bad}
    settings = dataclasses.asdict(config.linear) | dataclasses.asdict(config.crops)
    return classifier(test_features), labels, found, settings


def _finetune(config, encoder, train, test):
    settings = config.finetune
    if settings.label_fraction < 1:
        labels = datasets.labels_of(train)
        rows = finetune.choose_labelled(labels, settings.label_fraction, config.seed)
        train = datasets.subset(train, rows)
    with encoder.strategy.scope():
        resnet = saved_model.load_resnet(encoder.path)
    quarantine = Quarantine(train, config.data)
    classify = finetune.train(
        encoder.strategy,
        resnet,
        train,
        _crops(config, encoder),
        settings,
        config.seed,
        quarantine,
    )
    scores, labels = features.extract(
        encoding.on_all_replicas(encoder.strategy, classify, config.feature_batch_size),
        test,
        encoder.view,
        config.feature_batch_size,
        data=config.data,
    )
    found = {"num_train": train.num_examples - quarantine.num_bad}
    settings = dataclasses.asdict(settings) | {"finetune_epochs": settings.num_epochs}
    return scores, labels, found, settings | dataclasses.asdict(config.crops)


def _describe(config, encoder):
    """What the features of the evaluation split say of themselves, without labels."""
    source = datasets.load(config.data.dataset, config.data.data_dir, config.data.eval_split)
    if source.num_examples < 2:
        raise UserError(
            f"--protocol=spectrum needs two images or more. Received: {source.num_examples}"
        )
    logging.info("Protocol spectrum: %d images", source.num_examples)
    found, _, _ = _features_of(config, encoder, source)
    alignment = spectrum.alignment_of_crops(
        encoder.encode,
        source,
        _crops(config, encoder),
        config.feature_batch_size,
        config.seed,
        Quarantine(source, config.data),
    )
    result = {"num_images": len(found), "alignment": alignment, **spectrum.summarize(found)}
    return result, dataclasses.asdict(config.crops), {"eval_split": source}


def _extract(config, encoder):
    """The features of the evaluation split, into the cache."""
    source = datasets.load(config.data.dataset, config.data.data_dir, config.data.eval_split)
    logging.info("Protocol features: %d images", source.num_examples)
    found, _, _ = _features_of(config, encoder, source)
    result = {"num_images": len(found), "num_features": found.shape[1], "output": config.output}
    return result, {}, {"eval_split": source}


def _write_features(config, encoder, source, facts):
    found, labels, indices = _features_of(config, encoder, source)
    paths = []
    if config.data.dataset == "folder":
        paths = [source.describe(index) for index in indices.tolist()]
    feature_file.save(config.output, found, labels, indices, paths, source.class_names, facts)


def _features_of(config, encoder, source):
    """Features, labels and indices of a source's images, from the cache where they are there."""
    facts = _view_settings(config, encoder) | {
        "encoder": encoder.sha256,
        "versions": saved_model.versions(),
        "images": source.fingerprint(),
        "num_examples": source.num_examples,
        "class_names": source.class_names,
        "columns": ["label", "index"],
    }
    found, columns = feature_cache.load_or_extract(
        _cache_folder(config),
        facts,
        source.name,
        lambda *files: features.extract(
            encoder.encode,
            datasets.with_indices(source),
            encoder.view,
            config.feature_batch_size,
            files=files,
            data=config.data,
        ),
    )
    return found, *np.array(columns).T


def _view_settings(config, encoder):
    """What an encoder sees of a data set depends on."""
    data = config.data
    return {
        "image_size": encoder.image_size,
        "eval_crop_ratio": encoder.crop_ratio,
        "on_bad_image": data.on_bad_image,
        "max_bad_fraction": data.max_bad_fraction,
        "max_image_pixels": data.max_image_pixels,
    }


def _crops(config, encoder):
    crops = config.crops
    return views.build_linear_view(encoder.image_size, crops.crop_min_area, crops.flip_probability)


def _cache_folder(config):
    beside = os.path.dirname(os.path.abspath(config.encoder))
    return config.feature_cache or os.path.join(beside, "features")


def _of_whole_folder(config):
    """The same, but for a folder without splits, which is taken as it is."""
    data = config.data
    if data.dataset == "folder" and not datasets.folder_splits(data.data_dir):
        data = dataclasses.replace(data, eval_split="train")
    return dataclasses.replace(config, data=data)


def _load_labelled(data, split):
    source = datasets.load(data.dataset, data.data_dir, split)
    if not source.labelled:
        raise UserError(
            f"Evaluation needs labels (class subfolders). Received: {source.name}, unlabelled"
        )
    if len(source.class_names) < 2:
        raise UserError(
            f"Evaluation needs two classes or more. Received: {source.name}, with only "
            f"{source.class_names[0]!r}"
        )
    return source


def _check_output(path):
    """Finds out before the work whether the result can be written."""
    if path and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
        raise UserError(f"--output must be in a folder that can be written to. Received: {path}")
