"""The names of networks that `--backbone` takes, read without TensorFlow."""

import ast
import dataclasses
from typing import Any

from simsiam_tf.schema import UserError

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_SOURCES = ("keras", "keras_hub")


@dataclasses.dataclass(frozen=True)
class NetworkName:
    """A network of another library, or of the user's.

    Attributes:
      source: "keras" (`keras.applications`), "keras_hub", "file" (a `.keras` file), or "function"
        (the user's own).
      name: name of the class, preset or function, or path of the file.
      module: module of the function; "" for any other source.
      arguments: keyword arguments of the class or function.
    """

    source: str
    name: str
    module: str = ""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse(text: str) -> NetworkName:
    """Returns what a value of `--backbone` names that is none of `RESNETS`.

    Args:
      text: `keras:NAME`, `keras_hub:NAME`, `package.module:function`, each with optional arguments
        such as `keras:MobileNetV2(alpha=0.5)`, or the path of a `.keras` file.

    Raises:
      UserError: it is none of these, or an argument is not a plain value.
    """
    if text.endswith(".keras"):
        return NetworkName("file", text)
    source, colon, call = text.partition(":")
    name, parenthesis, _ = call.partition("(")
    if not colon or not source or not name or any(map(str.isspace, source + name)):
        raise UserError(
            f"--backbone must be one of {', '.join(RESNETS)}, keras:NAME, keras_hub:NAME, "
            f"package.module:function, or a .keras file. Received: {text}"
        )
    arguments = _arguments(text, call.removeprefix(name)) if parenthesis else {}
    if source in _SOURCES:
        return NetworkName(source, name, arguments=arguments)
    return NetworkName("function", name, source, arguments)


def _arguments(text: str, parenthesis: str) -> dict[str, Any]:
    """Returns the keyword arguments of a text such as `(alpha=0.5, depth=3)`."""
    try:
        call = ast.parse(f"f{parenthesis}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("not keyword arguments")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(
            "--backbone's arguments must be keywords with plain values, such as "
            f"keras:MobileNetV2(alpha=0.5). Received: {text}"
        ) from error
