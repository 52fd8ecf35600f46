"""PyTorch and safetensors files, read without running anything that they hold.

What a file says of its tensors is looked at first: nothing is allocated before the names, the
shapes and the total size are those of a model.
"""

import contextlib
import os
import pickle
from typing import NamedTuple

import numpy as np
from absl import logging

from simsiam_tf import files
from simsiam_tf.interop import naming
from simsiam_tf.schema import UserError

_INSTALL = "pip install -r requirements-interop.txt"


class Checkpoint(NamedTuple):
    """What a file holds: arrays, or only their descriptions while it is looked at."""

    tensors: dict  # name → tensor
    momenta: dict  # name → momentum of SGD; empty where the file has none
    epoch: int | None  # epochs of pre-training behind it, where the file says

    @property
    def shapes(self):
        """{name: shape} of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(path, check):
    """Reads a state dict: the authors' checkpoint, torchvision's, or a safetensors file.

    Args:
      path: a file; `.safetensors` by its name, else what `torch.save` writes.
      check: called with the `Checkpoint`'s shapes, {name: shape}, before a tensor is read; raises
        `UserError` on what is not wanted.

    Returns:
      A `Checkpoint` of NumPy arrays, float32. Names are without `module.`; counters of batches and
      torchvision's classifier are left out.

    Raises:
      UserError: the file is missing, truncated, no state dict, or holds anything but tensors and
        plain values; or the package that reads it is missing.
    """
    if not os.path.isfile(path):
        raise UserError(f"--checkpoint must be a file that exists. Received: {path}")
    reader = _read_safetensors if path.endswith(".safetensors") else _read_torch
    return reader(path, check)


def check_output(path):
    """Raises `UserError` unless `path` can be written and the package that writes it is there."""
    if path.endswith(".safetensors"):
        _import("safetensors.numpy")
    elif not path.endswith(".pkl"):
        _import("torch")
    try:
        with open(f"{path}{files.UNFINISHED}", "wb") as file:
            os.remove(file.name)
    except OSError as error:
        raise UserError(
            f"--output must be a file that can be written ({error.strerror}). Received: {path}"
        ) from error


def write(path, content):
    """Writes arrays, in dicts and lists of plain values, as `.safetensors` or as `.pth`."""
    if path.endswith(".safetensors"):
        save = _import("safetensors.numpy").save_file
    else:
        torch = _import("torch")

        def save(content, path):
            torch.save(_to_tensors(content, torch), path)

    with files.written_whole(path) as staging:
        save(content, staging)


def write_pickle(path, content):
    """Writes `content` as a pickle, which is what Detectron2 reads."""
    with files.written_whole(path) as staging, open(staging, "wb") as file:
        pickle.dump(content, file)


def _to_tensors(content, torch):
    if isinstance(content, dict):
        return {key: _to_tensors(value, torch) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content


def _import(name):
    try:
        module = __import__(name, fromlist=["_"])
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"This needs the package {package}: {_INSTALL}. Received: {error}"
        ) from error
    return module


def _read_safetensors(path, check):
    safetensors = _import("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            wanted = _wanted(slices)
            _check_types(path, {name: value.get_dtype() for name, value in wanted.items()})
            check({name: tuple(value.get_shape()) for name, value in wanted.items()})
            tensors = {name: _float32(value[...]) for name, value in wanted.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return Checkpoint(tensors, momenta={}, epoch=None)


def _read_torch(path, check):
    torch = _import("torch")
    fake_tensor = _import("torch._subclasses.fake_tensor")

    def load(mode):
        try:
            with mode:
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own text tells how to read it all the same; that would run what it holds.
            raise UserError(
                "--checkpoint must be a whole PyTorch file of tensors and plain values: nothing "
                f"else is read. Received: {path}"
            ) from error
        except Exception as error:  # a damaged file may break PyTorch's reader anywhere
            raise _unreadable(path, error) from error

    content = load(fake_tensor.FakeTensorMode())
    described = _parse(path, content)
    _check_types(path, {name: str(value.dtype) for name, value in described.tensors.items()})
    claimed = max(_stored_bytes(content, torch), _shown_bytes(described))
    if claimed > os.path.getsize(path):
        raise UserError(
            f"--checkpoint must be as large as its tensors, {claimed} bytes. Received: "
            f"{os.path.getsize(path)} bytes, {path}"
        )
    check(described.shapes)
    checkpoint = _parse(path, load(contextlib.nullcontext()))
    return Checkpoint(
        *(
            {name: _float32(value.numpy()) for name, value in part.items()}
            for part in checkpoint[:2]
        ),
        checkpoint.epoch,
    )


def _stored_bytes(content, torch):
    """The size of all memory behind the tensors of a file, wanted or not; what is shared, once."""
    sizes, rest = {}, [content]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest.extend(value.values())
        elif isinstance(value, list | tuple):
            rest.extend(value)
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(sizes.values())


def _shown_bytes(checkpoint):
    """The size of the wanted tensors as their shapes have it: a stride of zero shows much."""
    every = [*checkpoint.tensors.values(), *checkpoint.momenta.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in every)


def _parse(path, content):
    """A `Checkpoint` of tensors from what `torch.load` gives, checked for its form."""
    if not isinstance(content, dict):
        raise UserError(
            f"--checkpoint must hold a state dict. Received: a {type(content).__name__}, {path}"
        )
    state = content
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            state = content[key]
    tensors = _wanted({name: value for name, value in state.items() if hasattr(value, "shape")})
    epoch = content.get("epoch")
    epoch = epoch if isinstance(epoch, int) else None
    optimizer = content.get("optimizer")
    momenta = _momenta(path, tensors, optimizer) if isinstance(optimizer, dict) else {}
    return Checkpoint(tensors, momenta, epoch)


def _momenta(path, tensors, optimizer):
    """SGD's momentum buffers by the names of their parameters.

    PyTorch numbers parameters in the order of the state dict, and keeps none for a frozen one.
    """
    parameters = [name for name in tensors if not naming.is_statistic(name)]
    try:
        state = optimizer["state"]
        numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
        momenta = {
            name: state[number]["momentum_buffer"]
            for name, number in zip(parameters, numbers, strict=True)
            if state.get(number, {}).get("momentum_buffer") is not None
        }
        shapes = {name: tuple(value.shape) for name, value in momenta.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            "--checkpoint's optimizer must be PyTorch's SGD over the state dict's parameters. "
            f"Received: {path} ({error})"
        ) from error
    for name, shape in shapes.items():
        if shape != tuple(tensors[name].shape):
            raise UserError(
                f"--checkpoint's momentum of {name} must have the shape "
                f"{list(tensors[name].shape)}. Received: {list(shape)}"
            )
    return momenta


def _wanted(tensors):
    """What a model has: names without `module.`; no batch counters, no classifier."""
    named = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    return {
        name: value
        for name, value in named.items()
        if not name.endswith("num_batches_tracked") and name not in ("fc.weight", "fc.bias")
    }


def _check_types(path, types):
    for name, dtype in types.items():
        if dtype.removeprefix("torch.").replace("float", "F") not in ("F16", "F32", "F64"):
            raise UserError(
                f"--checkpoint's tensor {name} must be float16, float32 or float64. "
                f"Received: {dtype}, {path}"
            )
    converted = {dtype for dtype in types.values() if dtype not in ("torch.float32", "F32")}
    if converted:
        logging.info("%s holds %s; it becomes float32", path, ", ".join(sorted(converted)))


def _float32(array):
    return np.asarray(array, np.float32)


def _unreadable(path, error):
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"--checkpoint cannot be read ({first_line}). Received: {path}")
