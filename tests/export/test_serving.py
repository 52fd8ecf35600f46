"""Tests of the clients of docs/serving.md with a substitute for TensorFlow Serving.

TensorFlow Serving is not on PyPI. The substitute follows its REST documentation and its .proto
files. It shows that the clients fit the encoder's signatures by these documents, not that
TensorFlow Serving answers.
"""

import base64
import json
import re
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from simsiam_tf.export import saved_model
from simsiam_tf.models.resnet import ResNet

PREDICT = "/v1/models/encoder:predict"


def specs_of(loaded, name):
    """{name: TensorSpec} of the inputs of a signature."""
    return loaded.signatures[name or "serving_default"].structured_input_signature[1]


def call(loaded, name, **inputs):
    """{name: array} of the outputs of a signature."""
    tensors = {
        key: tf.constant(inputs.pop(key), spec.dtype)
        for key, spec in specs_of(loaded, name).items()
    }
    assert not inputs
    outputs = loaded.signatures[name or "serving_default"](**tensors)
    return {key: value.numpy() for key, value in outputs.items()}


def answer_rest(loaded, request):
    """The answer to a predict request in row format, with one input and one output."""
    assert request.keys() <= {"signature_name", "instances"}
    name = request.get("signature_name")
    (only,) = specs_of(loaded, name)
    instances = [
        base64.b64decode(one["b64"]) if isinstance(one, dict) else one
        for one in request["instances"]
    ]
    (output,) = call(loaded, name, **{only: instances}).values()
    return {"predictions": output.tolist()}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, pretrain_config):
    """A small encoder's SavedModel."""
    path = str(tmp_path_factory.mktemp("models") / "encoder")
    config = pretrain_config(width=4, stem="cifar", backbone="resnet18", image_size=16)
    saved_model.save(ResNet(config.encoder, seed=0), config, path, {})
    return tf.saved_model.load(path)


@pytest.fixture
def rest_port(loaded):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == PREDICT
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = json.dumps(answer_rest(loaded, json.loads(body))).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    with HTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def grpc_port(loaded):
    class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802 (the library's name)
            assert request.model_spec.name == "encoder"
            name = request.model_spec.signature_name
            # The server accepts only the dtypes of the signature, not even another float.
            types = {key: value.dtype for key, value in request.inputs.items()}
            specs = specs_of(loaded, name)
            assert types == {key: spec.dtype.as_datatype_enum for key, spec in specs.items()}
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            outputs = call(loaded, name, **inputs)
            answer = predict_pb2.PredictResponse()
            for key, value in outputs.items():
                answer.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return answer

    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield port
    server.stop(None).wait()


def run_clients(marker, port, folder):
    """Runs the Python of a section of docs/serving.md in a folder; returns its variables."""
    text = (ROOT / "docs" / "serving.md").read_text()
    (code,) = re.findall(rf"<!-- {marker} -->\n```python\n(.*?)```", text, re.DOTALL)
    default = {"rest": "localhost:8501", "grpc": "localhost:8500"}[marker]
    assert default in code
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code.replace(default, f"localhost:{port}"), names)
    return names


@pytest.mark.parametrize("marker", ["rest", "grpc"])
def test_the_documented_clients_receive_the_features_of_files_and_pixels(
    tmp_path, loaded, request, marker
):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = tf.io.encode_jpeg(image).numpy()
    (tmp_path / "image.jpg").write_bytes(file)
    names = run_clients(marker, request.getfixturevalue(f"{marker}_port"), tmp_path)
    of_file = call(loaded, "serve_encoded", encoded=[file])["features"]
    np.testing.assert_allclose(names["of_files"], of_file, rtol=1e-6)
    of_pixels = call(loaded, "serving_default", images=names["images"])["features"]
    np.testing.assert_allclose(names["of_pixels"], of_pixels, rtol=1e-6)
    assert of_pixels.shape == (2, 32)


def test_no_signature_calls_python(loaded):
    for name, inner in (("serving_default", "Conv2D"), ("serve_encoded", "DecodeJpeg")):
        graph = loaded.signatures[name].graph.as_graph_def()
        nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
        kinds = {node.op for node in nodes}
        assert inner in kinds
        assert not [kind for kind in kinds if "PyFunc" in kind]
