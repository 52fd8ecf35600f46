"""Reading and writing of PyTorch and safetensors files.

Reading runs no code that a file contains. The descriptions of the tensors are checked first. No
tensor is allocated before the names, the shapes and the total size are known to fit a model.
"""

import contextlib
import os
import pickle
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from simsiam_tf import files
from simsiam_tf.interop import naming
from simsiam_tf.schema import UserError

_INSTALL = "pip install -r requirements-interop.txt, or simsiam-tf[interop]"

Check = Callable[[dict[str, naming.Shape]], None]


class Checkpoint(NamedTuple):
    """The content of a file: arrays, or only their descriptions while the file is checked."""

    tensors: dict[str, Any]  # name → tensor
    momenta: dict[str, Any]  # name → momentum of SGD; empty if the file has none
    epoch: int | None  # number of completed pre-training epochs; None if the file does not say

    @property
    def shapes(self) -> dict[str, naming.Shape]:
        """Returns {name: shape} of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read(path: str, check: Check, *, with_momenta: bool = True) -> Checkpoint:
    """Returns the state dict of the authors' checkpoint, of a torchvision or a safetensors file.

    Args:
      path: the file. The suffix `.safetensors` marks a safetensors file; any other file must have
        been written by `torch.save`.
      check: called with {name: shape} of the tensors before a tensor is read. It raises
        `UserError` to reject the file.
      with_momenta: whether the momenta of the optimizer in the file are wanted; otherwise it may be
        any optimizer.

    Returns:
      A `Checkpoint` of float32 NumPy arrays. Names have no prefix `module.`. Batch counters and
      torchvision's classifier are not included.

    Raises:
      UserError: the file is missing, is truncated, is not a state dict, or contains anything but
        tensors and plain values. The same error reports that the package to read it is missing.
    """
    if not os.path.isfile(path):
        raise UserError(f"--checkpoint must be a file that exists. Received: {path}")
    if path.endswith(".safetensors"):
        return _read_safetensors(path, check)
    return _read_torch(path, check, with_momenta)


def check_output(path: str) -> None:
    """Checks that `path` can be written and that the package that writes it is installed.

    Raises:
      UserError: the file cannot be written, or the package is not installed.
    """
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


def write(path: str, content: dict[str, Any]) -> None:
    """Writes arrays, in dicts and lists of plain values, as `.safetensors` or as `.pth`."""
    is_safetensors = path.endswith(".safetensors")
    package = _import("safetensors.numpy" if is_safetensors else "torch")
    with files.written_whole(path) as staging:
        if is_safetensors:
            package.save_file(content, staging)
        else:
            package.save(_to_tensors(content, package), staging)


def write_pickle(path: str, content: Any) -> None:
    """Writes `content` as a pickle, the format that Detectron2 reads."""
    with files.written_whole(path) as staging, open(staging, "wb") as file:
        pickle.dump(content, file)


def _to_tensors(content: Any, torch: ModuleType) -> Any:
    if isinstance(content, dict):
        return {key: _to_tensors(value, torch) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content


def _import(name: str) -> ModuleType:
    try:
        module = __import__(name, fromlist=["_"])
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"This program needs the package {package}: {_INSTALL}. Received: {error}"
        ) from error
    return module


def _read_safetensors(path: str, check: Check) -> Checkpoint:
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


def _read_torch(path: str, check: Check, with_momenta: bool) -> Checkpoint:
    torch = _import("torch")
    fake_tensor = _import("torch._subclasses.fake_tensor")

    def load(mode: contextlib.AbstractContextManager) -> Any:
        try:
            with mode:
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            # PyTorch's own text is not shown: it advises to load the file in a way that runs code.
            raise UserError(
                "--checkpoint must be a complete PyTorch file that contains only tensors and plain "
                f"values. Received: {path}"
            ) from error
        except Exception as error:  # a damaged file may break PyTorch's reader anywhere
            raise _unreadable(path, error) from error

    content = load(fake_tensor.FakeTensorMode())
    described = _parse(path, content, with_momenta)
    _check_types(path, {name: str(value.dtype) for name, value in described.tensors.items()})
    claimed = max(_stored_bytes(content, torch), _shown_bytes(described))
    if claimed > os.path.getsize(path):
        raise UserError(
            f"--checkpoint must be as large as its tensors, {claimed} bytes. Received: "
            f"{os.path.getsize(path)} bytes, {path}"
        )
    check(described.shapes)
    checkpoint = _parse(path, load(contextlib.nullcontext()), with_momenta)
    return Checkpoint(
        {name: _float32(value.numpy()) for name, value in checkpoint.tensors.items()},
        {name: _float32(value.numpy()) for name, value in checkpoint.momenta.items()},
        checkpoint.epoch,
    )


def _stored_bytes(content: Any, torch: ModuleType) -> int:
    """Returns the bytes of memory of all tensors of a file; shared memory counts once.

    Tensors that the model does not need count too.
    """
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


def _shown_bytes(checkpoint: Checkpoint) -> int:
    """Returns the bytes of the model's tensors according to their shapes.

    A tensor with a stride of zero has few bytes of memory and many by its shape.
    """
    every = [*checkpoint.tensors.values(), *checkpoint.momenta.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in every)


def _parse(path: str, content: Any, with_momenta: bool) -> Checkpoint:
    """Returns the `Checkpoint` in a result of `torch.load`, and checks its structure."""
    if not isinstance(content, dict):
        raise UserError(
            f"--checkpoint must contain a state dict. Received: a {type(content).__name__}, {path}"
        )
    state = content
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            state = content[key]
    tensors = _wanted({name: value for name, value in state.items() if hasattr(value, "shape")})
    epoch = content.get("epoch")
    epoch = epoch if isinstance(epoch, int) else None
    optimizer = content.get("optimizer")
    momenta = {}
    if with_momenta and isinstance(optimizer, dict):
        momenta = _momenta(path, tensors, optimizer)
    return Checkpoint(tensors, momenta, epoch)


def _momenta(path: str, tensors: Mapping[str, Any], optimizer: dict) -> dict[str, Any]:
    """Returns SGD's momentum buffers by the names of their parameters.

    PyTorch numbers the parameters in the order of the state dict. A frozen parameter has no buffer.
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
            "The optimizer in --checkpoint must be PyTorch's SGD over the state dict's parameters. "
            f"Received: {path} ({error})"
        ) from error
    for name, shape in shapes.items():
        if shape != tuple(tensors[name].shape):
            raise UserError(
                f"The momentum of {name} in --checkpoint must have the shape "
                f"{list(tensors[name].shape)}. Received: {list(shape)}"
            )
    return momenta


def _wanted(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tensors of the model: no `module.` in names, batch counters or classifier."""
    named = {str(name).removeprefix("module."): value for name, value in tensors.items()}
    return {
        name: value
        for name, value in named.items()
        if not name.endswith("num_batches_tracked") and name not in ("fc.weight", "fc.bias")
    }


def _check_types(path: str, types: Mapping[str, str]) -> None:
    for name, dtype in types.items():
        if dtype.removeprefix("torch.").replace("float", "F") not in ("F16", "F32", "F64"):
            raise UserError(
                f"The tensor {name} in --checkpoint must be float16, float32 or float64. "
                f"Received: {dtype}, {path}"
            )
    converted = {dtype for dtype in types.values() if dtype not in ("torch.float32", "F32")}
    if converted:
        logging.info(
            "%s contains tensors of %s, which are converted to float32",
            path,
            ", ".join(sorted(converted)),
        )


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _unreadable(path: str, error: Exception) -> UserError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"--checkpoint cannot be read ({first_line}). Received: {path}")
