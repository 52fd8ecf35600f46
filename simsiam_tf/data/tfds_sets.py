"""Data sets of TensorFlow Datasets (TFDS): prepared if necessary, then opened by their format."""

import contextlib
import functools
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from simsiam_tf.data import (
    digits,  # noqa: F401 (TFDS knows the builder once it is imported)
    tfrecords,
)
from simsiam_tf.data.source import UNLABELLED, ReadImages, Source
from simsiam_tf.schema import UserError, one_line

_RECORDS_AT_ONCE = 16
_REACH_SECONDS = 5  # after which a host without an answer counts as unreachable
_ATTEMPT_SECONDS = 3


def prepared_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set, which is downloaded and prepared if necessary.

    Args:
      name: TFDS name with optional "/config" and ":version".
      data_dir: the folder where TFDS keeps its data sets; None: TFDS's own default.

    Raises:
      UserError: TFDS does not know the data set or cannot prepare it.
    """
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():  # a prepared data set keeps the format that it has on disk
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            "--dataset must be digits, folder, list, tar, parquet, packed or the name of a TFDS "
            "data set from "
            f"https://www.tensorflow.org/datasets/catalog. Received: {name}"
        ) from None
    # TFDS raises an AssertionError for an unknown version.
    except (AssertionError, ValueError, ImportError) as error:
        raise UserError(f"TFDS cannot build the data set {name}: {one_line(error)}") from error
    if not builder.is_prepared():
        logging.info("Preparing %s in %s", name, builder.data_dir)
        try:
            with _unreachable_hosts_refused():
                builder.download_and_prepare()
        # The data set's own script, the network and the disk can raise any exception.
        except Exception as error:
            raise UserError(
                f"The data set {name} is not in {builder.data_dir}, and TFDS cannot prepare it: "
                f"{type(error).__name__}: {one_line(error)}. Prepare it on a machine with a "
                "network, copy that folder here, and set --data_dir to the folder in which TFDS "
                "keeps it"
            ) from error
    # A builder that is opened from its folder knows every file format on disk.
    return tfds.builder_from_directory(builder.data_dir)


def load_tfds(builder: tfds.core.DatasetBuilder, split: str) -> Source:
    """Returns the `Source` of a split: random access to ArrayRecord files, a stream of others.

    Args:
      builder: of a prepared data set.
      split: name of a split, or a slice such as "train[:90%]".

    Raises:
      UserError: the split is unknown or empty, or the data set has no image.
    """
    name = f"{builder.info.full_name} {split}"
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError):
        raise UserError(
            f"{builder.info.full_name} has the splits {', '.join(builder.info.splits)}. "
            f"Received: {split}"
        ) from None
    if info.num_examples < 1:
        raise UserError(f"A split must contain at least one image. Received: {split}")
    features = builder.info.features
    image_key = _key_of(features, tfds.features.Image)
    label_key = _key_of(features, tfds.features.ClassLabel)
    if image_key is None:
        raise UserError(
            f"--dataset must be a data set of images. Received: {builder.info.full_name}"
        )
    class_names = tuple(features[label_key].names) if label_key else ()
    parse = _parser(image_key, label_key)

    def describe(index):
        return f"record {index} of {name} in {builder.data_dir}"

    def fingerprint():
        return f"{name} in {builder.data_dir}"

    if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
        logging.info("%s: %d images, read by random access (ArrayRecord)", name, info.num_examples)
        return Source(
            name,
            info.num_examples,
            class_names,
            describe,
            read=_array_record_reader(builder, split, parse),
            read_at_once=_RECORDS_AT_ONCE,
            fingerprint=fingerprint,
        )
    logging.info(
        "%s: %d images, streamed (%s) through a shuffle buffer of %d. Several workers share its %d "
        "file(s), so the order of the samples depends on the number of workers. For full shuffles "
        "by random access, in an order that does not depend on it, convert the data set in place: "
        "pip install apache-beam mlcroissant && tfds convert_format --dataset_version_dir=%s "
        "--out_file_format=array_record",
        name,
        info.num_examples,
        builder.info.file_format.value,
        tfrecords.SHUFFLE_BUFFER,
        len(info.file_instructions),
        builder.data_dir,
    )
    shards = tfrecords.shards_of(info.file_instructions)
    return Source(
        name,
        info.num_examples,
        class_names,
        describe,
        read=tfrecords.reader(shards, parse),
        fingerprint=fingerprint,
        stream=tfrecords.streamer(shards, parse),
        num_stream_files=len(info.file_instructions),
    )


@contextlib.contextmanager
def _unreachable_hosts_refused() -> Iterator[None]:
    """Context in which a download from a host that cannot be reached fails within seconds.

    TFDS tries each download eleven times, in the course of more than three minutes, and limits the
    time of no attempt. A host that has answered once is left to these attempts.

    Raises:
      requests.ConnectionError: from the download.
    """
    request = requests.Session.request
    reason_of_host = functools.cache(functools.partial(_why_unreachable, request))

    def checked_request(session, method, url, *arguments, **options):
        parts = urllib.parse.urlsplit(url)
        reason = reason_of_host(parts.scheme, parts.netloc)
        if reason:
            raise requests.ConnectionError(reason)
        return request(session, method, url, *arguments, **options)

    requests.Session.request = checked_request  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        requests.Session.request = request  # type: ignore[method-assign]


def _why_unreachable(request: Callable[..., object], scheme: str, host: str) -> str | None:
    """Returns why a host gives no answer; None if it gives one, whatever it is.

    Args:
      request: `requests.Session.request`, which knows the proxies of the environment.
      scheme: "http" or "https".
      host: name of the host, with its port if the address has one.
    """
    reasons = [f"{host.rpartition('@')[2]} does not answer within {_REACH_SECONDS} s"]

    def reach():
        url, options = f"{scheme}://{host}", {"timeout": _ATTEMPT_SECONDS, "allow_redirects": False}
        for wait in (0, 1):
            time.sleep(wait)
            try:
                with requests.Session() as session:
                    request(session, "HEAD", url, **options)
            except requests.ConnectionError as error:
                reasons[:] = [str(error)]
                continue
            except requests.RequestException:
                pass  # the host answers, but slowly or with nonsense
            reasons.clear()
            return

    # In a thread, because nothing limits the time in which a name is resolved.
    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS)
    return next(iter(reasons), None)


def _key_of(features: tfds.features.FeaturesDict, kind: type) -> str | None:
    """Returns the name of the first feature of a kind; None if there is none."""
    return next((key for key, feature in features.items() if isinstance(feature, kind)), None)


def _parser(image_key: str, label_key: str | None) -> tfrecords.Parse:
    """Returns a function: records `[k]` string → (encoded images `[k]`, labels `[k]` int32)."""
    spec = {image_key: tf.io.FixedLenFeature([], tf.string)}
    if label_key:
        spec[label_key] = tf.io.FixedLenFeature([], tf.int64)

    def parse(records):
        examples = tf.io.parse_example(records, spec)
        encoded = examples[image_key]
        label = examples[label_key] if label_key else tf.fill(tf.shape(encoded), UNLABELLED)
        return encoded, tf.cast(label, tf.int32)

    return parse


def _array_record_reader(
    builder: tfds.core.DatasetBuilder, split: str, parse: tfrecords.Parse
) -> ReadImages:
    records = builder.as_data_source(split=split).data_source  # the raw bytes, not decoded

    def fetch(indices):
        return np.array(records.__getitems__(indices.tolist()), dtype=object)

    def read(indices):
        raw = tf.numpy_function(fetch, [indices], tf.string, stateful=False)
        return parse(tf.ensure_shape(raw, indices.shape))

    return read
