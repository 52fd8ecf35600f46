"""What `evaluate.py` does, from top to bottom."""

import dataclasses
import json
import os

from absl import logging

from simsiam_tf import export
from simsiam_tf.data import datasets, views
from simsiam_tf.data.quarantine import Quarantine
from simsiam_tf.evaluation import feature_cache, features, knn, linear, probe
from simsiam_tf.schema import UserError


def run(config):
    """Evaluates an encoder as an `EvaluationConfig` says; prints and writes the result."""
    _check_output(config.output)
    encoder = os.path.abspath(config.encoder)
    encode, description = export.load(config.encoder)
    image_size = config.image_size or description.get("image_size")
    if not image_size:
        raise UserError(
            f"{config.encoder} has no {export.DESCRIPTION}, so --image_size must be given. "
            "Received: 0"
        )
    cache = config.feature_cache or os.path.join(os.path.dirname(encoder), "features")
    feature_cache.check(cache)
    crop_ratio = config.eval_crop_ratio or description.get("eval_crop_ratio", 0.875)
    data = config.data
    train = _load_labelled(data, data.train_split)
    test = _load_labelled(data, data.eval_split)
    if train.class_names != test.class_names:
        raise UserError(
            f"--train_split and --eval_split must have the same classes. Received: {train.name} "
            f"and {test.name}"
        )
    view = views.build_evaluation_view(image_size, crop_ratio)
    num_classes = len(train.class_names)

    logging.info(
        "Protocol %s: %d training, %d test images",
        config.protocol,
        train.num_examples,
        test.num_examples,
    )

    common_facts = {
        "encoder": feature_cache.hash_of_folder(encoder),
        "image_size": image_size,
        "eval_crop_ratio": crop_ratio,
        "on_bad_image": data.on_bad_image,
        "max_bad_fraction": data.max_bad_fraction,
        "max_image_pixels": data.max_image_pixels,
        "versions": export.versions(),
    }

    def features_of(source):
        facts = common_facts | {
            "images": source.fingerprint(),
            "num_examples": source.num_examples,
            "class_names": source.class_names,
        }
        return feature_cache.load_or_extract(
            cache,
            facts,
            source.name,
            lambda: features.extract(encode, source, view, config.feature_batch_size, data=data),
        )

    test_features, test_labels = features_of(test)
    choice = {}
    if config.protocol == "knn":
        bank, bank_labels = features_of(train)
        num_train = len(bank)
        settings = config.knn
        scores = knn.class_votes(
            bank, bank_labels, test_features, num_classes, settings.knn_k, settings.knn_temperature
        )
    elif config.protocol == "probe":
        train_features, train_labels = features_of(train)
        num_train = len(train_features)
        settings = config.probe
        classifier = probe.train_classifier(
            train_features, train_labels, num_classes, settings, config.seed
        )
        scores = classifier(test_features)
        names = ("learning_rate", "weight_decay", "held_out_top1")
        choice = {"chosen": {name: getattr(classifier, name) for name in names}}
    else:
        settings = config.linear
        quarantine = Quarantine(train, data)
        classifier = linear.train_classifier(
            encode,
            test_features.shape[1],
            train,
            views.build_linear_view(image_size, settings.crop_min_area, settings.flip_probability),
            settings,
            config.seed,
            quarantine,
        )
        num_train = train.num_examples - quarantine.num_bad
        scores = classifier(test_features)

    result = {
        "protocol": config.protocol,
        "top1": knn.top_k_accuracy(scores, test_labels, 1),
        "top5": knn.top_k_accuracy(scores, test_labels, min(5, num_classes)),
        "num_train": num_train,
        "num_test": len(test_features),
        "num_classes": num_classes,
        **choice,
        "dataset": data.dataset,
        "train_split": data.train_split,
        "eval_split": data.eval_split,
        "settings": dataclasses.asdict(settings)
        | {"image_size": image_size, "eval_crop_ratio": crop_ratio, "seed": config.seed},
        "encoder": encoder,
        "versions": export.versions(),
    }
    text = json.dumps(result)
    if config.output:
        with open(config.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text, flush=True)


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
