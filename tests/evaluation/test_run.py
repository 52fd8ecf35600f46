"""Tests of `evaluate.py`, as a program of its own where that makes a difference."""

import json
import re
import shutil

import numpy as np
import own_networks
import pytest
import tensorflow as tf
from image_folder import folder_of

from simsiam_tf.evaluation import feature_cache, run
from simsiam_tf.export import saved_model
from simsiam_tf.models import backbones
from simsiam_tf.schema import UserError


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("knn", {"knn_k": 20}),
        ("probe", {"probe_epochs": 5}),
        (
            "linear",
            {"batch_size": 64, "epochs": 2, "base_learning_rate": 20.0},
        ),
        ("finetune", {"finetune_epochs": 1, "finetune_batch_size": 64}),
    ],
)
def test_the_result_is_the_last_line_of_stdout_and_the_output_file(
    evaluate_here, tiny_run, tmp_path, protocol, settings
):
    output = tmp_path / "results.json"
    result = evaluate_here(
        f"--encoder={tiny_run / 'encoder'}", f"--protocol={protocol}", f"--output={output}",
        *(f"--{name}={value}" for name, value in settings.items()),
    )  # fmt: skip
    kept = json.loads(output.read_text())
    misclassified = kept.pop("misclassified")
    assert result == kept
    assert len(misclassified) == round(360 * (1 - result["top1"] / 100))
    assert result["protocol"] == protocol
    assert (result["num_train"], result["num_test"], result["num_classes"]) == (1437, 360, 10)
    assert settings.items() | {"seed": 0}.items() <= result["settings"].items()
    assert result["encoder"] == str(tiny_run / "encoder")
    assert result["encoder_sha256"] == feature_cache.hash_of_folder(tiny_run / "encoder")
    assert result["fingerprints"].keys() == {"train_split", "eval_split"}
    assert "digits/1.0.0 test" in result["fingerprints"]["eval_split"]
    assert result["versions"]["tensorflow"] == tf.__version__
    assert 0 < result["top1"] < result["top5"] <= 100


def test_the_misclassified_images_are_those_that_plain_nearest_neighbours_get_wrong(
    evaluate_here, pixels_encoder, tmp_path
):
    def evaluate(name, *flags):
        evaluate_here(
            f"--encoder={pixels_encoder}", "--image_size=8", "--eval_crop_ratio=1",
            f"--output={tmp_path / name}", *flags,
        )  # fmt: skip
        return tmp_path / name

    found = evaluate("knn.json", "--protocol=knn", "--knn_k=1")
    train, test = (
        np.load(evaluate(f"{split}.npz", "--protocol=features", f"--eval_split={split}"))
        for split in ("train", "test")
    )
    unit = [
        of["features"] / np.linalg.norm(of["features"], axis=1)[:, None] for of in (train, test)
    ]
    nearest = train["labels"][np.argmax(unit[1] @ unit[0].T, axis=1)]
    wrong = test["indices"][nearest != test["labels"]]
    assert json.loads(found.read_text())["misclassified"] == wrong.tolist()
    assert len(wrong) > 0


def test_results_without_output_add_up_beside_the_encoder_of_a_run(
    evaluate_here, tiny_run, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    found = [
        evaluate_here(f"--encoder={workdir / 'encoder'}", f"--protocol={protocol}")
        for protocol in ("knn", "spectrum")
    ]
    kept = sorted((workdir / "results").iterdir())
    for path, result in zip(kept, found, strict=True):
        assert re.fullmatch(rf"{result['protocol']}-digits-\d{{8}}-\d{{6}}\.json", path.name)
        assert result.items() <= json.loads(path.read_text()).items()


def test_the_result_of_an_encoder_outside_a_run_is_not_kept(evaluate_here, pixels_encoder):
    evaluate_here(
        f"--encoder={pixels_encoder}", "--protocol=knn", "--image_size=8",
        "--eval_crop_ratio=1",
    )  # fmt: skip
    assert not (pixels_encoder.parent / "results").exists()


def test_an_encoder_is_fine_tuned_on_a_share_of_the_labels_by_two_replicas(program, tiny_run):
    finished = program(
        "evaluate.py", f"--encoder={tiny_run / 'encoder'}", "--protocol=finetune",
        "--label_fraction=0.1", "--finetune_batch_size=16", "--finetune_head_learning_rate=1",
        "--strategy=mirrored", "--cpu_replicas=2", "--crop_min_area=0.8", "--flip_probability=0",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "on 2 replica(s)" in finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert 130 < result["num_train"] < 157
    assert result["settings"]["finetune_epochs"] == 30
    assert result["top1"] > 60


def test_a_saved_model_of_another_program_cannot_be_fine_tuned(program, pixels_encoder):
    finished = program(
        "evaluate.py", f"--encoder={pixels_encoder}", "--image_size=8", "--protocol=finetune"
    )
    assert finished.returncode == 1
    assert "--encoder must be an encoder that this version" in finished.stderr.splitlines()[-1]


def test_knn_top1_equals_the_last_value_of_the_runs_monitor(evaluate_here, tiny_run, tmp_path):
    result = evaluate_here(
        f"--encoder={tiny_run / 'encoder'}", "--knn_k=20", f"--feature_cache={tmp_path}"
    )
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert result["top1"] == pytest.approx(summary["knn_top1"], abs=0.3)


def test_any_saved_model_of_the_signature_is_evaluated(program, pixels_encoder):
    finished = program(
        "evaluate.py", f"--encoder={pixels_encoder}", "--image_size=8", "--eval_crop_ratio=1",
        "--knn_k=1",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    # One nearest neighbour on the pixels of the digits is known to be accurate.
    assert json.loads(finished.stdout.splitlines()[-1])["top1"] > 95


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "knn"},
        {"protocol": "probe", "probe_epochs": 1},
        {"protocol": "linear", "epochs": 1, "batch_size": 500},
        {"protocol": "spectrum", "eval_split": "train[:300]"},
    ],
    ids=lambda settings: settings["protocol"],
)
def test_two_replicas_give_the_result_of_one_for_every_protocol(
    evaluate, two_replicas, monkeypatch, tmp_path, settings
):
    settings = {"feature_batch_size": 32} | settings
    one, encoded = evaluate(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(run.devices, "build_strategy", lambda config: two_replicas)
        two, encoded_outside_of_replicas = evaluate(**settings, feature_cache=str(tmp_path / "two"))
    assert (
        encoded_outside_of_replicas < encoded / 2
    )  # replicas are counted only when they are traced
    names = [name for name in one if isinstance(one[name], float)]
    assert len(names) >= 2
    assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4)


def test_a_large_batch_of_the_linear_protocol_is_encoded_in_pieces(evaluate, monkeypatch):
    sizes = []
    original = run.encoding.on_all_replicas

    def spy(strategy, encode, piece_size):
        return original(strategy, lambda images: sizes.append(len(images)) or encode(images), 64)

    monkeypatch.setattr(run.encoding, "on_all_replicas", spy)
    evaluate(protocol="linear", epochs=1, batch_size=1000)
    assert sum(sizes) == 360 + 1000
    assert max(sizes) == 64


@pytest.mark.parametrize("strategy", ["multi_worker", "auto"])
def test_an_evaluation_joins_no_cluster(evaluation_config, monkeypatch, strategy):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    if strategy == "multi_worker":
        match = "An evaluation is one process.*Received: --strategy=multi_worker"
    else:
        match = "--encoder must be a folder that exists"  # so the strategy was built
    assert_refused(evaluation_config, match, encoder="/nowhere", strategy=strategy)


def test_the_test_split_does_not_influence_the_choice_of_the_probe(evaluate):
    settings = {"protocol": "probe", "train_split": "train[:600]", "probe_epochs": 5}
    first, _ = evaluate(**settings, eval_split="test")
    second, _ = evaluate(**settings, eval_split="train[600:]")
    assert first["num_test"] != second["num_test"]
    assert first["chosen"] == second["chosen"]
    assert 0 < first["chosen"]["held_out_top1"] <= 100


def test_the_spectrum_needs_no_labels_and_takes_a_folder_without_splits_whole(
    evaluation_config, pixels_encoder, tmp_path, capsys
):
    folder_of(tmp_path / "data", *(f"{number}.png" for number in range(5)))
    for number in range(4):  # the fifth image stays black
        image = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        (tmp_path / "data" / f"{number}.png").write_bytes(tf.io.encode_png(image).numpy())
    output = tmp_path / "results.json"
    run.run(
        evaluation_config(
            encoder=str(pixels_encoder), protocol="spectrum", dataset="folder", image_size=8,
            data_dir=str(tmp_path / "data"), output=str(output), feature_batch_size=2,
        )
    )  # fmt: skip
    short, whole = json.loads(capsys.readouterr().out), json.loads(output.read_text())
    assert whole.keys() - short.keys() == {"channel_std", "singular_values"}
    assert whole.items() >= {"protocol": "spectrum", "num_images": 5, "eval_split": "train"}.items()
    assert len(whole["channel_std"]) == 8 * 8 * 3
    assert len(whole["singular_values"]) == 5
    assert 1 < whole["effective_rank"] < 5
    assert 0 < whole["alignment"] < 4
    assert whole["settings"]["crop_min_area"] == 0.08


def assert_refused(evaluation_config, match, **settings):
    with pytest.raises(UserError, match=match):
        run.run(evaluation_config(**settings))


def test_the_image_size_must_be_known(evaluation_config, pixels_encoder):
    assert_refused(evaluation_config, "--image_size must be given", encoder=str(pixels_encoder))


def test_one_image_has_no_spectrum(evaluation_config, pixels_encoder, tmp_path):
    settings = folder_of(tmp_path / "data", "1.png") | {"encoder": str(pixels_encoder)}
    match = r"two images or more\. Received: 1"
    assert_refused(evaluation_config, match, protocol="spectrum", **settings)


@pytest.mark.parametrize(
    ("paths", "match"),
    [
        (["train/1.png", "test/1.png"], "needs labels"),
        (["train/cat/1.png", "test/cat/1.png"], "two classes or more.*'cat'"),
        (["train/cat/1.png", "train/dog/1.png"], "has the splits train. Received: test"),
        (["cat/1.png", "dog/1.png"], "has no split 'test'"),
    ],
)
def test_data_that_cannot_be_evaluated_on_is_refused(
    evaluation_config, pixels_encoder, tmp_path, paths, match
):
    settings = folder_of(tmp_path / "data", *paths)
    assert_refused(evaluation_config, match, encoder=str(pixels_encoder), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "knn"},
        {"protocol": "probe"},
        {"protocol": "linear", "batch_size": 5, "epochs": 1},
    ],
    ids=lambda settings: settings["protocol"],
)
def test_bad_images_are_left_out_of_the_counts_or_refused_by_name(
    evaluation_config, pixels_encoder, tmp_path, capsys, settings
):
    paths = [
        f"{split}/{name}/{number}.png"
        for split in ("train", "test")
        for name in ("cat", "dog")
        for number in range(10)
    ]
    folder = tmp_path / "data"
    settings = folder_of(folder, *paths) | {"encoder": str(pixels_encoder)} | settings
    for path in ("train/cat/3.png", "test/dog/1.png", "test/dog/2.png"):
        (folder / path).write_bytes(b"no image")
    output = tmp_path / "result.json"
    skip = {"on_bad_image": "skip", "max_bad_fraction": 0.1, "output": str(output)}
    run.run(evaluation_config(**settings, **skip))
    result = json.loads(capsys.readouterr().out)
    assert (result["num_train"], result["num_test"]) == (19, 18)
    # The images of the folder are in the order of their paths: dog/1 and dog/2 are 11 and 12.
    assert set(json.loads(output.read_text())["misclassified"]) <= set(range(20)) - {11, 12}
    assert_refused(evaluation_config, "test/dog/1.png", **settings)


def test_a_missing_encoder_ends_with_one_line(program):
    finished = program("evaluate.py", "--encoder=/nowhere")
    assert finished.returncode == 1
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("evaluate.py: --encoder must be a folder that exists.")
    assert "Traceback" not in finished.stderr


def test_an_output_that_cannot_be_written_is_refused_before_the_work_starts(evaluation_config):
    assert_refused(
        evaluation_config,
        "--output must be in a folder",
        encoder="x",
        output="/nowhere/results.json",
    )


def test_a_cache_that_cannot_be_written_is_refused_before_the_work_starts(
    evaluation_config, pixels_encoder, tmp_path
):
    (tmp_path / "file").write_text("")
    assert_refused(
        evaluation_config,
        "--feature_cache must be a folder",
        encoder=str(pixels_encoder),
        image_size=8,
        dataset="never loaded",
        feature_cache=str(tmp_path / "file"),
    )


def test_a_list_without_a_split_to_evaluate_on_is_taken_whole_and_its_paths_are_kept(
    evaluation_config, pixels_encoder, tmp_path
):
    names = [f"{number}.png" for number in range(5)]
    folder_of(tmp_path, *names)
    (tmp_path / "images.txt").write_text("\n".join(names) + "\n")
    output = tmp_path / "features.npz"
    run.evaluate(
        evaluation_config(
            encoder=str(pixels_encoder), protocol="features", dataset="list", image_size=8,
            data_dir=str(tmp_path / "images.txt"), output=str(output),
        )
    )  # fmt: skip
    assert np.load(output)["paths"].tolist() == [str(tmp_path / name) for name in names]


def test_an_encoder_of_one_size_is_evaluated_at_this_size(
    tmp_path, pretrain_config, evaluation_config, tfds_dir
):
    config = pretrain_config(backbone=own_networks.VIT.format(dropout=0), image_size=16)
    encoder = backbones.build(config.encoder, seed=0, image_size=16)
    saved_model.save(encoder, config, str(tmp_path / "encoder"), {})
    settings = {"encoder": str(tmp_path / "encoder"), "data_dir": str(tfds_dir), "protocol": "knn"}
    assert run.evaluate(evaluation_config(**settings, knn_k=20))["top1"] > 20
    with pytest.raises(UserError, match=r"--image_size must be 16.*Received: 24"):
        run.evaluate(evaluation_config(**settings, image_size=24))
