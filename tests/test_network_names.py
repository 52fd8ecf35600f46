import pytest

from simsiam_tf import network_names
from simsiam_tf.network_names import NetworkName
from simsiam_tf.schema import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keras:MobileNetV2", NetworkName("keras", "MobileNetV2")),
        (
            "keras:MobileNetV2(alpha=0.5)",
            NetworkName("keras", "MobileNetV2", arguments={"alpha": 0.5}),
        ),
        ("keras_hub:hf://timm/vit", NetworkName("keras_hub", "hf://timm/vit")),
        (
            "my.nets:build(depth=3, sizes=(1, 2), name='a')",
            NetworkName("function", "build", "my.nets", {"depth": 3, "sizes": (1, 2), "name": "a"}),
        ),
        ("some/where:net.keras", NetworkName("file", "some/where:net.keras")),
    ],
)
def test_a_name_says_source_network_and_arguments(text, expected):
    assert network_names.parse(text) == expected


@pytest.mark.parametrize("text", ["resnet19", "keras:", ":net", "my nets:build", "keras"])
def test_another_name_is_refused_with_those_that_there_are(text):
    with pytest.raises(UserError, match=f"resnet10, .*keras:NAME.*Received: {text}"):
        network_names.parse(text)


@pytest.mark.parametrize(
    "call", ["(0.5)", "(alpha=", "(alpha=open('x'))", "(alpha=1) + 2", "()[0]"]
)
def test_arguments_are_keywords_with_plain_values(call):
    with pytest.raises(UserError, match="keywords with plain values"):
        network_names.parse(f"keras:MobileNetV2{call}")
