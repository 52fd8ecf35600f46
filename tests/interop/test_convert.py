"""Import from PyTorch and export to PyTorch and Detectron2, by the programs' own functions."""

import json
import pickle

import numpy as np
import pytest
import tensorflow as tf
import torch
import torch_copy
from safetensors.torch import load_file

from simsiam_tf.data.pixels import RGB
from simsiam_tf.export import saved_model
from simsiam_tf.interop import convert
from simsiam_tf.interop.settings import (
    Detectron2ExportConfig,
    ImportConfig,
    SourceConfig,
    TorchExportConfig,
)
from simsiam_tf.schema import UserError


def random_tensors(shapes, seed=0):
    """Returns random float32 weights and statistics, in the order of `shapes`."""
    rng = np.random.default_rng(seed)

    def tensor(name, shape):
        x = rng.standard_normal(shape)
        if name.endswith("running_var"):
            x = 1 + 0.2 * np.abs(x)
        elif len(shape) > 1:
            x = x * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            x = 0.5 + 0.1 * x
        else:
            x = 0.1 * x
        return torch.from_numpy(np.asarray(x, np.float32))

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def import_file(tmp_path, state, **settings):
    torch.save(state, tmp_path / "in.pth")
    output = str(tmp_path / "encoder")
    convert.import_torch(
        ImportConfig(checkpoint=str(tmp_path / "in.pth"), output=output, **settings)
    )
    return output


def export_file(source, path, **settings):
    convert.export_torch(
        TorchExportConfig(source=SourceConfig(**source), output=str(path), **settings)
    )
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path)


def assert_same_tensors(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_imported_features_equal_pytorchs_and_the_export_restores_the_file(tmp_path, backbone):
    state = random_tensors(torch_copy.encoder_shapes(backbone))
    encoder = import_file(tmp_path, state)
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)

    encode, description = saved_model.load(encoder)
    normalized = (images / 255 - RGB.mean) / RGB.std
    nchw = torch.from_numpy(normalized.transpose(0, 3, 1, 2).astype(np.float32))
    expected = torch_copy.features(state, nchw).numpy()
    got = encode(tf.constant(images)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    assert description["backbone"] == backbone
    assert description["imported_from"] == "in.pth"

    assert_same_tensors(export_file({"encoder": encoder}, tmp_path / "out.pth"), state)


def authors_checkpoint(backbone="resnet18"):
    """Returns a checkpoint like that of the authors' main_simsiam.py after one optimizer step."""
    shapes = torch_copy.simsiam_shapes(backbone, dim=32, prediction_hidden_dim=8)
    state = random_tensors(shapes)
    parameters = [name for name in state if "running" not in name]
    momenta = random_tensors({name: shapes[name] for name in parameters}, seed=1)
    del momenta["encoder.fc.6.bias"]  # frozen
    numbers = {name: number for number, name in enumerate(parameters)}
    groups = [
        [numbers[name] for name in parameters if name.startswith(prefix)]
        for prefix in ("encoder.", "predictor.")
    ]
    return {
        "epoch": 100,
        "arch": backbone,
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "optimizer": {
            "state": {numbers[name]: {"momentum_buffer": m} for name, m in momenta.items()},
            "param_groups": [{"params": group, "lr": 0.1} for group in groups],
        },
    }


def test_a_whole_checkpoint_with_momentum_survives_a_round_trip_bit_for_bit(tmp_path):
    checkpoint, workdir = authors_checkpoint(), str(tmp_path / "run")
    import_file(tmp_path, checkpoint, workdir=workdir, step=44)
    assert int(convert.load_run(workdir)[1].iterations) == 44
    back = export_file({"workdir": workdir}, tmp_path / "out.pth", whole=True, epoch=100)
    assert (back["epoch"], back["arch"]) == (100, "resnet18")
    assert_same_tensors(back["state_dict"], checkpoint["state_dict"])
    ours, theirs = back["optimizer"], checkpoint["optimizer"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert torch.equal(ours["state"][number]["momentum_buffer"], state["momentum_buffer"])
    assert [g["params"] for g in ours["param_groups"]] == [
        g["params"] for g in theirs["param_groups"]
    ]


def test_pytorchs_sgd_loads_the_exported_optimizer(tmp_path):
    workdir = str(tmp_path / "run")
    import_file(tmp_path, authors_checkpoint(), workdir=workdir)
    back = export_file({"workdir": workdir}, tmp_path / "out.pth", whole=True)
    parameters = {
        name: torch.nn.Parameter(value)
        for name, value in back["state_dict"].items()
        if "running" not in name
    }
    groups = [
        {"params": [p for n, p in parameters.items() if n.startswith(f"module.{part}.")]}
        for part in ("encoder", "predictor")
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    optimizer.load_state_dict(back["optimizer"])
    assert [group["fix_lr"] for group in optimizer.param_groups] == [False, True]
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_training_resumes_from_an_imported_checkpoint(train_here, tmp_path):
    workdir = tmp_path / "run"
    import_file(tmp_path, authors_checkpoint(), workdir=str(workdir), step=2)
    train_here(
        workdir,
        "--backbone=resnet18",
        "--projection_hidden_dim=512",
        "--projection_dim=32",
        "--prediction_hidden_dim=8",
        "--image_size=16",
        "--batch_size=359",  # 4 steps an epoch
        "--epochs=1",
        "--log_every_steps=1",
        "--knn_every_epochs=0",
        "--health_every_epochs=0",
    )
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]


def test_training_with_another_network_than_the_imported_one_is_rejected(train_here, tmp_path):
    import_file(tmp_path, authors_checkpoint(), workdir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="--backbone=resnet18 there, resnet50 here"):
        train_here(tmp_path / "run")


def test_exports_of_a_run_and_of_its_encoder_are_equal_in_both_formats(tmp_path, tiny_run):
    of_run = export_file({"workdir": str(tiny_run)}, tmp_path / "run.safetensors")
    of_encoder = export_file({"encoder": str(tiny_run / "encoder")}, tmp_path / "encoder.pth")
    assert_same_tensors(of_run, of_encoder)
    assert of_run["conv1.weight"].shape == (16, 3, 3, 3)


def test_every_tensor_has_detectron2s_name(tmp_path):
    state = random_tensors(torch_copy.encoder_shapes("resnet50"))
    encoder = import_file(tmp_path, state)
    path = tmp_path / "out.pkl"
    convert.export_detectron2(
        Detectron2ExportConfig(source=SourceConfig(encoder=encoder), output=str(path))
    )
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True
    model = content["model"]
    assert len(model) == len(state)
    # Names from detectron2/modeling/backbone/resnet.py: stem, res2 to res5, shortcut, conv.norm.
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.conv1.weight": "layer1.0.conv1.weight",
        "res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        "res2.0.shortcut.norm.bias": "layer1.0.downsample.1.bias",
        "res5.2.conv3.norm.running_mean": "layer4.2.bn3.running_mean",
    }.items():
        np.testing.assert_array_equal(model[theirs], state[ours].numpy())
    stages = {name.split(".")[0] for name in model}
    assert stages == {"stem", "res2", "res3", "res4", "res5"}


def test_a_cifar_stem_is_not_exported_to_detectron2(tmp_path, tiny_run):
    config = Detectron2ExportConfig(
        source=SourceConfig(encoder=str(tiny_run / "encoder")), output=str(tmp_path / "out.pkl")
    )
    with pytest.raises(UserError, match="--stem=imagenet"):
        convert.export_detectron2(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": torch.ones(64, 64, 1, 1)}, r"expected|\[64, 64, 3, 3\]"),
        ({"bn1.bias": None}, r"must contain the tensor bn1.bias of shape \[64\]"),
    ],
)
def test_a_wrong_file_is_rejected_before_anything_is_written(tmp_path, change, message):
    state = random_tensors(torch_copy.encoder_shapes("resnet18")) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(UserError, match=message):
        import_file(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_an_encoder_without_heads_does_not_become_a_run(tmp_path):
    state = random_tensors(torch_copy.encoder_shapes("resnet18"))
    with pytest.raises(UserError, match="--workdir needs a checkpoint with the projector"):
        import_file(tmp_path, state, workdir=str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_an_output_folder_with_files_is_rejected_and_kept(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="--output must be a new or an empty folder"):
        import_file(tmp_path, random_tensors(torch_copy.encoder_shapes("resnet18")))
    assert (tmp_path / "encoder" / "thesis.txt").exists()


def test_the_programs_report_a_wrong_flag_in_one_line(program):
    for module, line in {
        "import_torch": "import_torch.py: --checkpoint must be a file that exists",
        "export_torch": "export_torch.py: --encoder or --workdir must be given",
        "export_detectron2": "export_detectron2.py: --encoder or --workdir must be given",
    }.items():
        flags = ["--checkpoint=no"] if module == "import_torch" else []
        finished = program("-m", f"simsiam_tf.interop.{module}", *flags, "--output=no.pkl")
        assert finished.returncode in (1, 2)
        assert finished.stderr.strip().splitlines()[-1].startswith(line)
        assert "Traceback" not in finished.stderr
