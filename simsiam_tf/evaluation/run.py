"""The course of `evaluate.py`, from top to bottom."""

import dataclasses
import datetime
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from simsiam_tf import files, terminal
from simsiam_tf.config import DevicesConfig, SystemConfig
from simsiam_tf.data import datasets, views
from simsiam_tf.data.datasets import Source
from simsiam_tf.data.pixels import Pixels
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
from simsiam_tf.evaluation.config import EvaluationConfig, EvaluationDataConfig
from simsiam_tf.export import saved_model
from simsiam_tf.runs import run_folder
from simsiam_tf.schema import UserError


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """The encoder to evaluate, and how images are prepared for it."""

    path: str
    sha256: str
    # images [b, size, size, C], in [0, 255] or the encoder's range of values → features [b, F]
    encode: Callable[[tf.Tensor], tf.Tensor]
    image_size: int
    crop_ratio: float
    pixels: Pixels  # of the images that it was trained on
    strategy: tf.distribute.Strategy  # its replicas share the work

    def view(self, image: tf.Tensor) -> tf.Tensor:
        """Evaluation's view of an image, `[size, size, C]` float32, as `encode` takes it."""
        return views.build_evaluation_view(self.image_size, self.crop_ratio, self.pixels)(image)

    def encode_crops(self, crops: tf.Tensor) -> tf.Tensor:
        """The features of views of `views.build_linear_view`, `[b, F]`."""
        return self.encode(crops if crops.dtype == tf.uint8 else self.pixels.to_values(crops))

    def load(self, data: EvaluationDataConfig, split: str) -> Source:
        """The images of a split, with the pixels that the encoder knows."""
        source = datasets.load(data.dataset, data.data_dir, split)
        return dataclasses.replace(source, pixels=self.pixels)


def run(config: EvaluationConfig) -> None:
    """Evaluates an encoder by a protocol, and prints the result as one line of JSON.

    Lists, with a number for each feature or wrongly classified image, are only in the file.

    Raises:
      UserError: as in `evaluate`.
    """
    result = evaluate(config)
    path = config.output or _keep(result)
    terminal.say(f"{_sentence(result)}{f', in {path}' if path else ''}")
    short = {name: value for name, value in result.items() if not isinstance(value, list)}
    print(json.dumps(short), flush=True)


def _keep(result: dict[str, Any]) -> str:
    """Writes a result beside the others of the run that has the encoder.

    Returns:
      The path of the file; "" if the encoder is not in the folder of a run, or that is read-only.
    """
    workdir = os.path.dirname(os.path.abspath(result["encoder"]))
    if not os.path.exists(os.path.join(workdir, run_folder.FLAGFILE)):
        return ""
    now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    data = re.sub(r"\W+", "-", result["dataset"])
    path = os.path.join(workdir, run_folder.RESULTS, f"{result['protocol']}-{data}-{now}.json")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        files.write_text(path, json.dumps(result) + "\n")
    except OSError as error:
        logging.warning("The result is not kept: %s cannot be written (%s)", path, error.strerror)
        return ""
    return path


def _sentence(result: dict[str, Any]) -> str:
    """Returns a result for people to read."""
    forms = {
        "top1": "top-1 {:.2f} %",
        "top5": "top-5 {:.2f} %",
        "effective_rank": "effective rank {:.1f}",
        "uniformity": "uniformity {:.2f}",
        "alignment": "alignment {:.2f}",
    }
    found = [form.format(result[name]) for name, form in forms.items() if name in result]
    reached = f": {', '.join(found)}" if found else " written"
    return f"{result['protocol']} on {result['dataset']}{reached}"


def evaluate(config: EvaluationConfig) -> dict[str, Any]:
    """Evaluates an encoder by a protocol; writes the result to `--output` and returns it.

    Raises:
      UserError: the encoder or the data set cannot be read or used, or a file cannot be written.
    """
    _check_output(config.output)
    encoder = _load_encoder(config, _build_strategy(config.devices))
    if config.protocol != "finetune":  # its encoder changes, so it keeps no features
        feature_cache.check(_cache_folder(config))
    unlabelled = {"spectrum": _describe, "features": _extract}
    if config.protocol in unlabelled:
        config = _of_whole_data_set(config)
    protocol = unlabelled.get(config.protocol, _classify)
    found, settings, sources = protocol(config, encoder)
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
    return result


def _build_strategy(config: DevicesConfig) -> tf.distribute.Strategy:
    """The distribution strategy, on the devices of this machine only."""
    if config.strategy == "multi_worker":
        raise UserError(
            "An evaluation is one process; --strategy=mirrored uses all GPUs of this machine. "
            "Received: --strategy=multi_worker"
        )
    if config.strategy == "auto" and "TF_CONFIG" in os.environ:  # it may name other workers
        config = dataclasses.replace(config, strategy="mirrored")
    return devices.build_strategy(SystemConfig(**dataclasses.asdict(config)))


def _load_encoder(config: EvaluationConfig, strategy: tf.distribute.Strategy) -> _Encoder:
    with strategy.scope():
        encode, description = saved_model.load(config.encoder)
    image_size = config.image_size or description.get("image_size")
    if not image_size:
        raise UserError(
            f"{config.encoder} has no {saved_model.DESCRIPTION}, so --image_size must be given. "
            "Received: 0"
        )
    if not description.get("takes_any_size", True) and image_size != description["image_size"]:
        raise UserError(
            f"--image_size must be {description['image_size']}, the only size that this encoder's "
            f"network takes. Received: {image_size}"
        )
    return _Encoder(
        path=os.path.abspath(config.encoder),
        sha256=feature_cache.hash_of_folder(os.path.abspath(config.encoder)),
        encode=encoding.on_all_replicas(strategy, encode, config.feature_batch_size),
        image_size=image_size,
        crop_ratio=config.eval_crop_ratio or description.get("eval_crop_ratio", 0.875),
        pixels=saved_model.pixels_of(description),
        strategy=strategy,
    )


# A protocol returns its entries of the result, its settings, and the sources by name of their flag.
_Outcome = tuple[dict[str, Any], dict[str, Any], dict[str, Source]]


@dataclasses.dataclass(frozen=True)
class _Classified:
    """A classifier's scores for the images of the evaluation split, and its settings."""

    scores: tf.Tensor | np.ndarray  # [N, classes]
    labels: np.ndarray  # [N]
    indices: np.ndarray  # [N], of the images in the split
    found: dict[str, Any]  # entries of the result
    settings: dict[str, Any]


def _classify(config: EvaluationConfig, encoder: _Encoder) -> _Outcome:
    """The accuracy of a classifier on the evaluation split, none of which it was trained on."""
    data = config.data
    train = _load_labelled(encoder, data, data.train_split)
    test = _load_labelled(encoder, data, data.eval_split)
    if train.class_names != test.class_names:
        raise UserError(
            f"--train_split and --eval_split must have the same classes. Received: {train.name} "
            f"and {test.name}"
        )
    logging.info(
        "Protocol %s: %d training images, %d test images",
        config.protocol,
        train.num_examples,
        test.num_examples,
    )
    protocols = {"knn": _knn, "probe": _probe, "linear": _linear, "finetune": _finetune}
    protocol = protocols[config.protocol]
    classified = protocol(config, encoder, train, test)
    scores, labels = classified.scores, classified.labels
    num_classes = len(train.class_names)
    is_wrong = ~knn.is_in_top_k(scores, labels, 1)
    found = {
        "top1": knn.top_k_accuracy(scores, labels, 1),
        "top5": knn.top_k_accuracy(scores, labels, min(5, num_classes)),
        "num_test": len(labels),
        "num_classes": num_classes,
        **classified.found,
        "misclassified": classified.indices[is_wrong].tolist(),
    }
    return found, classified.settings, {"train_split": train, "eval_split": test}


def _knn(config: EvaluationConfig, encoder: _Encoder, train: Source, test: Source) -> _Classified:
    queries, labels, indices = _features_of(config, encoder, test)
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
    found = {"num_train": len(bank)}
    return _Classified(votes, labels, indices, found, dataclasses.asdict(settings))


def _probe(config: EvaluationConfig, encoder: _Encoder, train: Source, test: Source) -> _Classified:
    test_features, labels, indices = _features_of(config, encoder, test)
    train_features, train_labels, _ = _features_of(config, encoder, train)
    classifier = probe.train_classifier(
        train_features, train_labels, len(train.class_names), config.probe, config.seed
    )
    names = ("learning_rate", "weight_decay", "held_out_top1")
    found = {
        "num_train": len(train_features),
        "chosen": {name: getattr(classifier, name) for name in names},
    }
    scores, settings = classifier(test_features), dataclasses.asdict(config.probe)
    return _Classified(scores, labels, indices, found, settings)


def _linear(
    config: EvaluationConfig, encoder: _Encoder, train: Source, test: Source
) -> _Classified:
    test_features, labels, indices = _features_of(config, encoder, test)
    quarantine = Quarantine(train, config.data)
    classifier = linear.train_classifier(
        encoder.encode_crops,
        test_features.shape[1],
        train,
        _crops(config, encoder),
        config.linear,
        config.seed,
        quarantine,
    )
    found = {"num_train": train.num_examples - quarantine.num_bad}
    settings = dataclasses.asdict(config.linear) | dataclasses.asdict(config.crops)
    return _Classified(classifier(test_features), labels, indices, found, settings)


def _finetune(
    config: EvaluationConfig, encoder: _Encoder, train: Source, test: Source
) -> _Classified:
    label_fraction = config.finetune.label_fraction
    if label_fraction < 1:
        labels = datasets.labels_of(train)
        indices = finetune.choose_labelled(labels, label_fraction, config.seed)
        train = datasets.subset(train, indices)
    with encoder.strategy.scope():
        backbone, _ = saved_model.load_backbone(encoder.path)
    quarantine = Quarantine(train, config.data)
    classify = finetune.train(
        encoder.strategy,
        backbone,
        train,
        _crops(config, encoder),
        config.finetune,
        config.seed,
        quarantine,
    )
    scores, columns = features.extract(
        encoding.on_all_replicas(encoder.strategy, classify, config.feature_batch_size),
        datasets.with_indices(test),
        encoder.view,
        config.feature_batch_size,
        data=config.data,
    )
    found = {"num_train": train.num_examples - quarantine.num_bad}
    settings = dataclasses.asdict(config.finetune)
    settings["finetune_epochs"] = config.finetune.num_epochs
    labels, indices = columns.T
    settings |= dataclasses.asdict(config.crops)
    return _Classified(scores, labels, indices, found, settings)


def _describe(config: EvaluationConfig, encoder: _Encoder) -> _Outcome:
    """How the features of the evaluation split are spread; labels are not needed."""
    source = encoder.load(config.data, config.data.eval_split)
    if source.num_examples < 2:
        raise UserError(
            f"--protocol=spectrum needs two images or more. Received: {source.num_examples}"
        )
    logging.info("Protocol spectrum: %d images", source.num_examples)
    found, _, _ = _features_of(config, encoder, source)
    alignment = spectrum.alignment_of_crops(
        encoder.encode_crops,
        source,
        _crops(config, encoder),
        config.feature_batch_size,
        config.seed,
        Quarantine(source, config.data),
    )
    result = {"num_images": len(found), "alignment": alignment, **spectrum.summarize(found)}
    return result, dataclasses.asdict(config.crops), {"eval_split": source}


def _extract(config: EvaluationConfig, encoder: _Encoder) -> _Outcome:
    """Extracts the features of the evaluation split into the cache."""
    source = encoder.load(config.data, config.data.eval_split)
    logging.info("Protocol features: %d images", source.num_examples)
    found, _, _ = _features_of(config, encoder, source)
    result = {"num_images": len(found), "num_features": found.shape[1], "output": config.output}
    return result, {}, {"eval_split": source}


def _write_features(
    config: EvaluationConfig, encoder: _Encoder, source: Source, facts: dict[str, Any]
) -> None:
    found, labels, indices = _features_of(config, encoder, source)
    paths = []
    if datasets.is_own(config.data.dataset):
        paths = [source.describe(index) for index in indices.tolist()]
    feature_file.save(config.output, found, labels, indices, paths, source.class_names, facts)


def _features_of(
    config: EvaluationConfig, encoder: _Encoder, source: Source
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and indices of a source's images, from the cache if it has them."""
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
    labels, indices = np.array(columns).T
    return found, labels, indices


def _view_settings(config: EvaluationConfig, encoder: _Encoder) -> dict[str, Any]:
    """The settings that decide which images an encoder sees, and how they are prepared."""
    data = config.data
    return {
        "image_size": encoder.image_size,
        "eval_crop_ratio": encoder.crop_ratio,
        "on_bad_image": data.on_bad_image,
        "max_bad_fraction": data.max_bad_fraction,
        "max_image_pixels": data.max_image_pixels,
    }


def _crops(
    config: EvaluationConfig, encoder: _Encoder
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, Any]]:
    crops = config.crops
    return views.build_linear_view(
        encoder.image_size, crops.crop_min_area, crops.flip_probability, encoder.pixels
    )


def _cache_folder(config: EvaluationConfig) -> str:
    beside = os.path.dirname(os.path.abspath(config.encoder))
    return config.feature_cache or os.path.join(beside, "features")


def _of_whole_data_set(config: EvaluationConfig) -> EvaluationConfig:
    """The config with own images that have no split to evaluate on taken whole.

    Any other config is returned unchanged.
    """
    data = config.data
    if data.dataset == "folder":
        is_whole = not datasets.folder_splits(data.data_dir)
    else:
        is_whole = datasets.is_own(data.dataset) and not _has_split(data, data.eval_split)
    if is_whole and (data.dataset == "folder" or _has_split(data, "train")):
        data = dataclasses.replace(data, eval_split="train")
    return dataclasses.replace(config, data=data)


def _has_split(data: EvaluationDataConfig, split: str) -> bool:
    try:
        datasets.load(data.dataset, data.data_dir, split)
    except UserError:
        return False
    return True


def _load_labelled(encoder: _Encoder, data: EvaluationDataConfig, split: str) -> Source:
    source = encoder.load(data, split)
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


def _check_output(path: str) -> None:
    """Refuses an `--output` that cannot be written, before the evaluation starts."""
    if path and not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
        raise UserError(f"--output must be in a folder that can be written to. Received: {path}")
