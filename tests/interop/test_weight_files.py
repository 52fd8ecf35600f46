"""Valid files in PyTorch's formats are read; damaged and hostile files are rejected."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from simsiam_tf.interop import weight_files
from simsiam_tf.schema import UserError


def state_dict():
    generator = torch.Generator().manual_seed(0)
    return {
        "module.conv1.weight": torch.randn(4, 3, 7, 7, generator=generator),
        "module.bn1.running_mean": torch.randn(4, generator=generator),
        "module.bn1.num_batches_tracked": torch.tensor(3),
        "module.fc.weight": torch.randn(10, 4, generator=generator),
    }


WANTED = {"conv1.weight": (4, 3, 7, 7), "bn1.running_mean": (4,)}


def accept(shapes):
    assert shapes == WANTED


def refuse_nothing(shapes):
    pass


@pytest.mark.parametrize(
    "wrap",
    [lambda state: state, lambda state: {"state_dict": state, "epoch": 7}],
    ids=["plain", "authors"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_read_without_module_prefix_counters_and_classifier(tmp_path, wrap, zipped):
    path, state = str(tmp_path / "file.pth"), state_dict()
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    checkpoint = weight_files.read(path, accept)
    for name in WANTED:
        np.testing.assert_array_equal(checkpoint.tensors[name], state[f"module.{name}"].numpy())
    assert checkpoint.epoch == (7 if "epoch" in wrap(state) else None)


def test_a_safetensors_file_is_read_in_the_same_way(tmp_path):
    path, state = str(tmp_path / "file.safetensors"), state_dict()
    save_file({name: value.numpy() for name, value in state.items()}, path)
    checkpoint = weight_files.read(path, accept)
    for name in WANTED:
        np.testing.assert_array_equal(checkpoint.tensors[name], state[f"module.{name}"].numpy())


def test_momentum_is_named_in_parameter_order_and_frozen_parameters_have_none(tmp_path):
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in (2, 3, 4)]
    parameters[1].requires_grad = False
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    (parameters[0].sum() + 5 * parameters[2].sum()).backward()
    optimizer.step()
    state = dict(zip(["a.weight", "b.bias", "c.weight"], [p.data for p in parameters], strict=True))
    path = str(tmp_path / "file.pth")
    torch.save({"state_dict": state, "optimizer": optimizer.state_dict()}, path)
    momenta = weight_files.read(path, refuse_nothing).momenta
    assert momenta.keys() == {"a.weight", "c.weight"}
    np.testing.assert_array_equal(momenta["c.weight"], np.full(4, 5, np.float32))


def test_no_tensor_is_read_before_the_shapes_are_accepted(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save(state_dict(), path)
    # The bytes of the tensors are removed; their descriptions stay complete.
    with zipfile.ZipFile(path) as archive:
        entries = {item: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for item, data in entries.items():
            archive.writestr(item, data if "/data/" not in item.filename else b"")
        archive.writestr("file/padding", bytes(10_000))  # restores the claimed size

    def refuse(shapes):
        assert shapes == WANTED
        raise UserError("not these")

    with pytest.raises(UserError, match="not these"):
        weight_files.read(path, refuse)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_rejected_and_runs_nothing(tmp_path, zipped):
    path, folder = str(tmp_path / "file.pth"), str(tmp_path / "harm")
    torch.save(state_dict() | {"x": Harmful(folder)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"only tensors and plain values\. Received: .*file.pth"):
        weight_files.read(path, refuse_nothing)
    assert not os.path.exists(folder)


def test_a_plain_pickle_is_rejected_and_runs_nothing(tmp_path):
    path, folder = tmp_path / "file.pth", str(tmp_path / "harm")
    path.write_bytes(pickle.dumps(Harmful(folder)))
    with pytest.raises(UserError, match="--checkpoint"):
        weight_files.read(str(path), refuse_nothing)
    assert not os.path.exists(folder)


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_reported_in_one_line_with_its_path(tmp_path, name, share):
    path, state = tmp_path / name, state_dict()
    if name.endswith(".pth"):
        torch.save(state, path)
    else:
        save_file({key: value.numpy() for key, value in state.items()}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=f"Received: {path}") as error:
        weight_files.read(str(path), refuse_nothing)
    assert "\n" not in str(error.value)


def test_a_tensor_that_expands_one_number_to_many_is_rejected(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save({"conv1.weight": torch.ones(1).expand(10_000_000)}, path)
    with pytest.raises(UserError, match="as large as its tensors, 40000000 bytes"):
        weight_files.read(path, refuse_nothing)


def test_a_compressed_tensor_of_zeros_is_rejected_even_outside_the_state_dict(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save({"state_dict": state_dict(), "more": [torch.zeros(10_000_000)[:1]]}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {item.filename: archive.read(item) for item in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(UserError, match=r"as large as its tensors, 4000\d{4} bytes"):
        weight_files.read(path, refuse_nothing)


def test_tensors_that_share_memory_count_once(tmp_path):
    path, weight = str(tmp_path / "file.pth"), torch.ones(10_000)
    torch.save({"a": weight, "optimizer_of_another_kind": [weight, weight]}, path)
    assert weight_files.read(path, refuse_nothing).tensors.keys() == {"a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must contain a state dict. Received: a list"),
        ({"conv1.weight": torch.ones(3, dtype=torch.int8)}, "Received: torch.int8"),
        (
            {"a": torch.ones(2), "optimizer": {"state": {}}},
            "optimizer in --checkpoint must be PyTorch's SGD",
        ),
        (
            {
                "a": torch.ones(2),
                "optimizer": {
                    "state": {0: {"momentum_buffer": torch.ones(3)}},
                    "param_groups": [{"params": [0]}],
                },
            },
            r"momentum of a in --checkpoint must have the shape \[2\]. Received: \[3\]",
        ),
    ],
)
def test_content_other_than_a_state_dict_of_floats_is_rejected(tmp_path, content, message):
    path = str(tmp_path / "file.pth")
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        weight_files.read(path, refuse_nothing)


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_a_missing_package_is_reported_with_its_installation(tmp_path, monkeypatch, name):
    package = "torch" if name.endswith(".pth") else "safetensors"
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=f"package {package}: pip install -r requirements-interop"):
        weight_files.read(str(tmp_path / name), refuse_nothing)


def test_a_missing_file_is_reported_with_its_path():
    with pytest.raises(UserError, match=r"--checkpoint must be a file.*Received: nowhere.pth"):
        weight_files.read("nowhere.pth", refuse_nothing)


def test_an_output_in_a_missing_folder_is_rejected_at_once(tmp_path):
    path = str(tmp_path / "missing" / "file.pth")
    with pytest.raises(UserError, match=f"--output .*Received: {path}"):
        weight_files.check_output(path)
