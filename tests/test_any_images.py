"""A stranger's images from file to features: turned by a camera, of many bands, of sixteen bits."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from simsiam_tf import flags, schema
from simsiam_tf.config import PretrainConfig
from simsiam_tf.distribution import process_state
from simsiam_tf.evaluation import run as evaluation_run
from simsiam_tf.evaluation.config import EvaluationConfig
from simsiam_tf.export import from_checkpoint, saved_model
from simsiam_tf.export.keras_encoder import load_encoder
from simsiam_tf.export.settings import ExportConfig
from simsiam_tf.reporting import page, record
from simsiam_tf.training import pretrain

SMALL = [
    "--dataset=folder", "--image_size=16", "--backbone=resnet10", "--width=4", "--stem=cifar",
    "--projection_dim=16", "--projection_hidden_dim=16", "--prediction_hidden_dim=8",
    "--batch_size=8", "--epochs=1", "--knn_k=3",
]  # fmt: skip


@pytest.fixture
def train(tmp_path):
    def run(folder, *settings):
        arguments = [*SMALL, f"--data_dir={folder}", f"--workdir={tmp_path / 'run'}", *settings]
        with process_state.unchanged():
            pretrain.run(flags.read(arguments, PretrainConfig))
        return tmp_path / "run"

    return run


def evaluated(encoder, folder, protocol, *settings):
    arguments = [
        f"--encoder={encoder}", f"--protocol={protocol}", "--dataset=folder",
        f"--data_dir={folder}", *settings,
    ]  # fmt: skip
    return evaluation_run.evaluate(flags.read(arguments, EvaluationConfig))


def write(folder, kind, save, train=16, test=6):
    """Writes two classes of images in two splits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            label = number % 2
            path = folder / split / "ab"[label] / f"{number}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, label, rng)


def save_bands(path, label, rng):
    levels = rng.integers(0, 2000, (24, 20, 13)).astype(np.uint16)
    levels[..., : 6 if label else 3] += 1900
    tifffile.imwrite(path, levels, photometric="minisblack", planarconfig="contig")


def test_thirteen_bands_are_trained_exported_served_and_evaluated(tmp_path, train, capsys):
    folder = tmp_path / "bands"
    write(folder, "tif", save_bands)
    run = train(folder)
    description = json.loads((run / "encoder" / "encoder.json").read_text())
    assert description["channels"] == len(description["mean"]) == 13
    assert description["value_range"] == [0, 4095]
    assert description["depth"] == "float32"

    encode, _ = saved_model.load(str(run / "encoder"))
    images = np.stack([tifffile.imread(path) for path in sorted((folder / "test").rglob("*.tif"))])
    features = encode(tf.constant(images, tf.float32)).numpy()
    signatures = tf.saved_model.load(str(run / "encoder")).signatures
    assert set(signatures) == {"serving_default", "feature_maps"}  # JPEG has no 13 bands
    np.testing.assert_allclose(load_encoder(run)(images), features, atol=1e-5)

    for protocol, settings in (
        ("knn", ["--knn_k=3"]),
        ("linear", ["--epochs=2"]),
        ("finetune", ["--finetune_batch_size=8", "--finetune_epochs=2"]),
        ("spectrum", []),
    ):
        found = evaluated(run / "encoder", folder, protocol, *settings)
        assert found.get("num_test", found.get("num_images")) == 6
    found = evaluated(run / "encoder", folder, "features", f"--output={tmp_path / 'f.npz'}")
    assert found["num_images"] == 6

    output = tmp_path / "again"
    arguments = [f"--checkpoint={run}", f"--output={output}"]
    with process_state.unchanged():
        from_checkpoint.export(flags.read(arguments, ExportConfig))
    capsys.readouterr()
    again, _ = saved_model.load(str(output))
    np.testing.assert_allclose(again(tf.constant(images, tf.float32)), features, atol=1e-5)
    text = page.render(record.read(str(run)))
    assert 'alt="first view"' in text
    assert "channels" not in text.split("View pairs")[1].split("</section>")[0]


def save_gray_16(path, label, rng):
    levels = rng.integers(0, 2000, (20, 20)) + 2000 * label
    Image.fromarray(levels.astype(np.uint16)).save(path)


def test_sixteen_bit_files_are_served_as_they_are_evaluated(tmp_path, train):
    folder = tmp_path / "xray"
    write(folder, "png", save_gray_16)
    run = train(folder, "--eval_crop_ratio=1")
    assert json.loads((run / "images.json").read_text())["pixels"]["high"] == 4095
    files = [path.read_bytes() for path in sorted((folder / "test").rglob("*.png"))]
    served = tf.saved_model.load(str(run / "encoder")).signatures["serve_encoded"]
    features = served(encoded=tf.constant(files))["features"].numpy()
    output = tmp_path / "f.npz"
    evaluated(run / "encoder", folder, "features", f"--output={output}")
    np.testing.assert_allclose(np.load(output)["features"], features, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 1e-3


def save_turned(path, label, rng):
    exif = Image.Exif()
    exif[0x0112] = 1 + int(path.stem) % 8
    soft = np.linspace(0, 200, 24)[:, None, None] * np.linspace(0.3, 1, 16)[:, None]
    image = np.broadcast_to(soft, (24, 16, 3)) + 40 * label + rng.normal(0, 1, (24, 16, 3))
    Image.fromarray(image.astype(np.uint8)).save(path, exif=exif)


def test_the_eight_orientations_of_a_picture_have_one_set_of_features(tmp_path, train):
    write(tmp_path / "photos", "png", save_turned)
    run = train(tmp_path / "photos")
    upright = np.asarray(Image.open(tmp_path / "photos" / "test" / "a" / "0.png"))
    turned = tmp_path / "turned"
    turned.mkdir()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = stored_as(upright, orientation)
        Image.fromarray(stored).save(turned / f"{orientation}.png", exif=exif)
    files = [path.read_bytes() for path in sorted(turned.iterdir())]
    served = tf.saved_model.load(str(run / "encoder")).signatures["serve_encoded"]
    features = served(encoded=tf.constant(files))["features"].numpy()
    np.testing.assert_array_equal(features, np.repeat(features[:1], 8, axis=0))
    output = tmp_path / "f.npz"
    evaluated(run / "encoder", turned, "features", f"--output={output}")
    np.testing.assert_allclose(np.load(output)["features"], features, atol=1e-5)

    ignored = train(tmp_path / "photos", "--exif_orientation=ignore", f"--workdir={tmp_path / 'b'}")
    assert ignored == run
    served = tf.saved_model.load(str(tmp_path / "b" / "encoder")).signatures["serve_encoded"]
    features = served(encoded=tf.constant(files))["features"].numpy()
    assert len(np.unique(features.round(4), axis=0)) == 8


def stored_as(upright, orientation):
    """The pixels of a file with an orientation, whose picture is upright: Pillow turns it back."""
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = Image.fromarray(upright)
    return np.asarray(image.transpose(methods[orientation]) if orientation > 1 else image)


def test_a_run_of_an_earlier_version_goes_on_with_the_pixels_that_it_had(tmp_path, train):
    """Its folder says neither channels nor orientation, so both stay as they were."""
    write(tmp_path / "photos", "png", save_turned)
    run = train(tmp_path / "photos")
    (run / "summary.json").unlink()
    entries = json.loads((run / "images.json").read_text())
    assert entries.pop("pixels")["exif_orientation"] == "apply"
    (run / "images.json").write_text(json.dumps(entries))
    names = [field.name for field in dataclasses.fields(PretrainConfig().pixels)]
    kept = [
        line
        for line in (run / "flags.cfg").read_text().splitlines()
        if not any(line.startswith(f"--{name}=") for name in names)
    ]
    (run / "flags.cfg").write_text("\n".join(kept) + "\n")
    assert set(names) <= set(schema.defaults(PretrainConfig))
    train(tmp_path / "photos")
    entries = json.loads((run / "images.json").read_text())
    assert entries["pixels"]["exif_orientation"] == "ignore"


def test_an_image_of_every_format_is_trained_on(tmp_path, train):
    folder = tmp_path / "heap"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, kind in enumerate(("jpg", "png", "bmp", "gif", "webp", "tiff", "avif") * 2):
        levels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.{kind}")
    file = io.BytesIO()
    np.save(file, rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    (folder / "array.npy").write_bytes(file.getvalue())
    run = train(folder, "--batch_size=15")
    assert json.loads((run / "images.json").read_text())["images"] == 15
