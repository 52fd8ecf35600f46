"""Images of any depth and number of channels: what `auto` means, and their views."""

import io
import logging

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_views import photograph, seed_of

from simsiam_tf.config import PixelsConfig, ViewsConfig
from simsiam_tf.data import datasets, ops, sampling, views
from simsiam_tf.data.pixels import RGB, Pixels
from simsiam_tf.schema import UserError

SIZE = 16
RECIPE = ViewsConfig(image_size=SIZE)


def pixels_of(channels):
    return Pixels(channels, "float32", mean=(0.5,) * channels, std=(0.25,) * channels)


def numbers(channels, height=40, width=33):
    rng = np.random.default_rng(channels)
    soft = np.linspace(0, 1, height)[:, None, None] * np.linspace(0.2, 1, channels)
    return np.clip(soft + rng.normal(0, 0.1, [height, width, channels]), 0, 1).astype(np.float32)


def prepared(config, pixels, image, number, num_views=2):
    """The views of an image as inputs of the network, denormalised, `[V, S, S, C]`."""
    build = views.build_views(config, num_views, pixels)
    pairs = tf.data.Dataset.from_tensors((image, seed_of(number)))
    batch = next(iter(pairs.map(build).batch(1)))
    return np.concatenate([pixels.denormalize(view) for view in views.prepare(batch, pixels)])


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_deep_views_of_host_and_device_agree(channels):
    for number in range(8):
        host, device = (
            prepared(
                ViewsConfig(image_size=SIZE, augment_on=augment_on, vertical_flip_probability=0.5,
                            rotate90_probability=0.5),
                pixels_of(channels), numbers(channels), number,
            )
            for augment_on in ("host", "device")
        )  # fmt: skip
        assert host.shape == (2, SIZE, SIZE, channels)
        np.testing.assert_allclose(host, device, atol=2e-3)  # the blur's tails


def test_deep_views_of_rgb_are_the_views_of_8_bits_before_rounding():
    image = photograph()
    for number in range(8):
        usual = prepared(RECIPE, RGB, image, number)
        deep = prepared(RECIPE, pixels_of(3), (image / np.float32(255)), number)
        assert np.abs(usual - deep).max() <= 2.5 / 255
        assert np.abs(usual - deep).mean() < 0.5 / 255


def test_a_deep_crop_is_pillows_on_floats():
    image = numbers(1, 40, 40)
    plain = ViewsConfig(
        image_size=SIZE, crop_min_area=1.0, jitter_probability=0, blur_probability=0,
        flip_probability=0,
    )  # fmt: skip
    for found in prepared(plain, pixels_of(1), image, 0):
        resized = Image.fromarray(image[..., 0]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[..., 0], np.asarray(resized), atol=1e-5)


def test_only_brightness_and_contrast_change_the_colours_of_other_images():
    """Each channel c becomes clip(a·c + b), with one a and b for all channels."""
    image = np.full([20, 20, 5], 0.5, np.float32) * np.linspace(0.6, 1, 5, dtype=np.float32)
    config = ViewsConfig(image_size=SIZE, jitter_probability=1, grayscale_probability=1, hue=0.5)
    for number in range(4):
        for view in prepared(config, pixels_of(5), image, number):
            found = view[0, 0]
            assert np.ptp(view, axis=(0, 1)).max() < 1e-4
            np.testing.assert_allclose(np.diff(found, 2), 0, atol=1e-4)
            assert found.std() > 0.01


def test_turns_reach_each_of_the_eight_symmetries_about_equally():
    image = np.zeros([SIZE, SIZE, 1], np.float32)
    image[0, 1] = 1  # is at another place in each of the eight
    config = ViewsConfig(
        image_size=SIZE, crop_min_area=1.0, jitter_probability=0, blur_probability=0,
        vertical_flip_probability=0.5, rotate90_probability=0.75,
    )  # fmt: skip
    found = [
        int(np.argmax(view)) for number in range(100)
        for view in prepared(config, pixels_of(1), image, number)
    ]  # fmt: skip
    places, counts = np.unique(found, return_counts=True)
    assert len(places) == 8
    assert counts.min() > 10


def test_turns_leave_the_other_draws_as_they_are():
    image = photograph(SIZE, SIZE)
    plain = ViewsConfig(image_size=SIZE)
    turned = ViewsConfig(image_size=SIZE, rotate90_probability=1.0)
    for number in range(4):
        pairs = zip(
            prepared(plain, RGB, image, number), prepared(turned, RGB, image, number), strict=True
        )
        for before, after in pairs:
            rotations = [np.rot90(before, quarters) for quarters in (1, 2, 3)]
            assert min(np.abs(after - rotated).max() for rotated in rotations) < 1e-6


def test_the_evaluation_view_has_the_encoders_range_of_values():
    pixels = Pixels(2, "float32", -5.0, 20.0, (0, 0), (1, 1))
    image = np.full([20, 20, 2], 0.4, np.float32)
    view = views.build_evaluation_view(SIZE, 0.875, pixels)(tf.constant(image))
    np.testing.assert_allclose(view, np.full([SIZE, SIZE, 2], 5.0), rtol=1e-5)
    np.testing.assert_allclose(pixels.from_values(view), 0.4, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 13])
def test_an_image_is_shown_in_three_channels(channels):
    image = tf.constant(numbers(channels))
    shown = pixels_of(channels).show(image).numpy()
    assert shown.shape == (*image.shape[:2], 3)
    expected = image[..., :3] if channels >= 3 else tf.reduce_mean(image, -1, keepdims=True)
    np.testing.assert_allclose(shown, expected + np.zeros(3), rtol=1e-6)


def test_luma_of_other_channels_is_their_mean():
    image = numbers(5)
    contrast = ops.adjust_contrast(tf.constant(image), 0.5).numpy()
    np.testing.assert_allclose(contrast, np.clip(image / 2 + image.mean() / 2, 0, 1), atol=1e-5)


# What `auto` means.


def folder(tmp_path, *images):
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray) and (image.ndim == 3 or image.dtype.kind == "f"):
            np.save(tmp_path / f"{number:03}.npy", image)
        else:
            image = image if isinstance(image, Image.Image) else Image.fromarray(image)
            image.save(tmp_path / f"{number:03}.png")
    return datasets.load("folder", str(tmp_path), "train")


def resolved(source, **settings):
    return sampling.resolve_pixels(PixelsConfig(**settings), source)


GRAY = Image.fromarray(photograph()).convert("L")
COLOUR = Image.fromarray(photograph())
TWELVE_BITS = (np.arange(40 * 33).reshape(40, 33) * 3).astype(np.uint16)  # up to 3,957


def test_rgb_of_8_bits_is_the_usual_case(tmp_path):
    found = resolved(folder(tmp_path, COLOUR, GRAY, COLOUR))
    assert found == Pixels(exif_orientation="apply")
    assert resolved(folder(tmp_path, COLOUR), exif_orientation="ignore") == RGB


def test_grey_stays_one_channel(tmp_path):
    found = resolved(folder(tmp_path, GRAY, GRAY))
    levels = np.asarray(GRAY) / 255
    assert (found.channels, found.low, found.high) == (1, 0, 255)
    np.testing.assert_allclose(found.mean, [levels.mean()], atol=1e-3)
    np.testing.assert_allclose(found.std, [levels.std()], atol=1e-3)
    assert resolved(folder(tmp_path, GRAY), channels="3", exif_orientation="ignore") == RGB


def test_twelve_bits_of_sixteen_end_at_4095(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "absl"):
        found = resolved(folder(tmp_path, TWELVE_BITS))
    assert (found.channels, found.depth, found.low, found.high) == (1, "float32", 0, 4095)
    assert "Images of 1 channel(s), values from 0 to 4095, mean 0.4" in caplog.text
    given = resolved(folder(tmp_path, TWELVE_BITS), value_range="100,5000")
    assert (given.low, given.high) == (100, 5000)


def test_bands_and_floats_are_measured(tmp_path):
    image = numbers(13) * 30 - 10
    found = resolved(folder(tmp_path, image, image))
    assert found.channels == 13
    assert (found.low, found.high) == (pytest.approx(image.min()), pytest.approx(image.max()))
    scaled = (image - found.low) / (found.high - found.low)
    np.testing.assert_allclose(found.mean, scaled.mean(axis=(0, 1)), atol=1e-3)
    np.testing.assert_allclose(found.std, scaled.std(axis=(0, 1)), atol=1e-3)
    in_unit_range = resolved(folder(tmp_path, numbers(13), numbers(13)))
    assert (in_unit_range.low, in_unit_range.high) == (0, 1)


def test_given_statistics_are_taken_and_counted(tmp_path):
    source = folder(tmp_path, GRAY)
    found = resolved(source, channel_mean="0.2", channel_std="0.3")
    assert (found.mean, found.std) == ((0.2,), (0.3,))
    with pytest.raises(UserError, match=r"--channel_mean .* each of the 1 channels. Received: 2"):
        resolved(source, channel_mean="0.2,0.3")


def test_different_numbers_of_channels_are_an_error_that_names_them(tmp_path):
    with pytest.raises(UserError, match=r"--channels=auto .* Received: 4, 13 channels"):
        resolved(folder(tmp_path, numbers(13), numbers(4)))


def test_unreadable_images_are_left_to_the_pipeline(tmp_path):
    source = folder(tmp_path, GRAY, GRAY)
    (tmp_path / "000.png").write_bytes(b"no image")
    assert resolved(source).channels == 1
    (tmp_path / "001.png").write_bytes(b"")
    assert resolved(source).channels == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", "0"), ("channels", "rgb"), ("value_range", "5"), ("value_range", "5,5"),
        ("value_range", "1,inf"), ("channel_mean", "a,b"), ("channel_std", "0.1,0"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_pixels_is_refused(name, value):
    with pytest.raises(UserError, match=rf"--{name} .*Received: {value}"):
        PixelsConfig(**{name: value})


def test_a_source_of_every_format_is_sampled_by_its_content(tmp_path):
    file = io.BytesIO()
    np.save(file, numbers(7))
    (tmp_path / "a.tif").write_bytes(file.getvalue())  # its name says another format
    source = datasets.load("folder", str(tmp_path), "train")
    assert resolved(source).channels == 7
