"""The Open Inference Protocol: what is sent and believed on both ends, against services and clients that misbehave."""

import contextlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stealthmark.errors import UserError
from stealthmark.suspects import exchange, inference
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.inference import BINARY, ENVELOPE, JSON_LENGTH, read_request, read_response, write_tensor
from stealthmark.suspects.querier import Limits
from stealthmark.suspects.server import server

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)
ONCE = Limits(retries=0)


@pytest.fixture(autouse=True)
def direct(monkeypatch) -> None:
    """The client does not sleep, and asks no proxy for a server of this machine."""
    monkeypatch.setattr(exchange, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def images(n: int = 5, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def half(batch: Tensor) -> Tensor:
    return batch[:, 0] / 2


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple[int, ...] = (-1, *SHAPE)) -> dict:
    return {"name": name, "datatype": datatype, "shape": [*shape]}


METADATA = {"name": "lesions", "platform": "theirs", "inputs": [tensor()], "outputs": [tensor("y", shape=(-1, 1, 4, 4))]}


class Model:
    """A model `lesions` of a server that speaks the protocol, and answers by `answer`: a request's images -> body, headers."""

    def __init__(self, answer=None, metadata: object = METADATA, extensions: object = ()):
        self.pages = {"/v2/models/lesions": metadata, "/v2": {"extensions": [*extensions]}}
        self.requests: list[tuple[str, dict, bytes]] = []
        model, answer = self, answer or (lambda values: write_tensor("outputs", "y", values[:, :1] / 2, False))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                model.requests.append((self.path, {}, b""))
                page = model.pages.get(self.path)
                content = page if isinstance(page, bytes) else json.dumps(page).encode()
                self.reply(404 if page is None else 200, content, {})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                model.requests.append((self.path, dict(self.headers), body))
                _, values = read_request(body, self.headers.get(JSON_LENGTH), 10**6)
                content, headers = answer(values)
                self.reply(200, content, {key.replace("_", "-"): value for key, value in headers.items()})

            def reply(self, status, content, headers):
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        self.thread = Thread(target=self.serving.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = "http://{}:{}/v2/models/lesions".format(*self.serving.server_address)
        return self

    def __exit__(self, *error):
        self.serving.shutdown()
        self.thread.join()
        self.serving.server_close()

    def ask(self, limits: Limits = ONCE, shows: str = "probabilities") -> Tensor:
        return connect(self.url, SHAPE, CPU, limits, shows)(images())

    def refuses(self, limits: Limits = ONCE) -> str:
        with pytest.raises(UserError) as error:
            self.ask(limits)
        assert str(error.value).startswith(self.url) and "\n" not in str(error.value) and len(str(error.value)) < 700
        return str(error.value)


# --- the client -------------------------------------------------------------------------------------------------------


def test_a_model_is_asked_what_it_takes_and_then_for_its_answers():
    with Model() as model:
        suspect = connect(model.url, SHAPE, CPU, Limits(batch=2))
        torch.testing.assert_close(suspect(images()), half(images()), rtol=0, atol=0)
        assert suspect.sent == 5 and suspect.source.kind == "http"
    paths, _, bodies = zip(*model.requests, strict=True)
    assert paths == ("/v2/models/lesions", "/v2", *["/v2/models/lesions/infer"] * 3)
    sent = [json.loads(body) for body in bodies[2:]]
    assert sent[0]["inputs"][0] | {"data": 0} == {"name": "x", "datatype": "FP32", "shape": [2, 3, 4, 4], "data": 0}
    assert all(request["outputs"] == [{"name": "y"}] for request in sent)
    values = [np.float32(request["inputs"][0]["data"]).reshape(request["inputs"][0]["shape"]) for request in sent]
    assert np.array_equal(np.concatenate(values), images().numpy())


@pytest.mark.parametrize("tail", ["", "/", "/infer", "?token=hidden"])
def test_the_address_of_a_model_has_several_forms(tail):
    with Model() as model:
        if "?" in tail:
            model.pages = {path + tail: page for path, page in model.pages.items()}
        torch.testing.assert_close(connect(model.url + tail, SHAPE, CPU, ONCE)(images()), half(images()), rtol=0, atol=0)
        assert "hidden" not in str(describe_suspect(model.url + tail))


def test_a_version_is_part_of_a_models_address():
    with Model() as model:
        model.pages["/v2/models/lesions/versions/3"] = METADATA
        model.url += "/versions/3"
        model.ask()
    assert model.requests[-1][0] == "/v2/models/lesions/versions/3/infer"


@pytest.mark.parametrize("in_answer", [True, False])
def test_a_server_that_takes_bytes_is_sent_bytes(in_answer):
    def answer(values):
        return write_tensor("outputs", "y", values[:, :1] / 2, in_answer)

    with Model(answer, extensions=["other", BINARY]) as model:
        torch.testing.assert_close(model.ask(), half(images()), rtol=0, atol=0)
    _, headers, body = model.requests[-1]
    length = int(headers[JSON_LENGTH])
    request = json.loads(body[:length])
    assert request["parameters"] == {"binary_data_output": True}
    assert request["inputs"][0]["parameters"] == {"binary_data_size": 5 * 48 * 4} and "data" not in request["inputs"][0]
    assert body[length:] == images().numpy().tobytes()


@pytest.mark.parametrize("datatype, dtype", [("FP64", np.float64), ("FP16", np.float16)])
def test_images_are_sent_in_the_type_that_the_model_takes(datatype, dtype):
    metadata = METADATA | {"inputs": [tensor(datatype=datatype)]}
    with Model(metadata=metadata, extensions=[BINARY]) as model:
        expected = torch.from_numpy((images()[:, 0].numpy().astype(dtype) / 2).astype(np.float32))
        torch.testing.assert_close(model.ask(), expected, rtol=0, atol=0)


def test_a_model_for_a_fixed_number_of_images_is_given_that_many():
    with Model(metadata=METADATA | {"inputs": [tensor(shape=(2, 3, -1, -1))]}) as model:
        suspect = connect(model.url, SHAPE, CPU)
        torch.testing.assert_close(suspect(images()), half(images()), rtol=0, atol=0)
        assert suspect.sent == 5
    assert [json.loads(body)["inputs"][0]["shape"][0] for _, _, body in model.requests[2:]] == [2] * 3


@pytest.mark.parametrize("empty", [[], None])
def test_a_model_that_names_nothing_is_asked_by_the_usual_name(empty):
    with Model(metadata={"name": "lesions", "inputs": empty, "outputs": empty}) as model:
        torch.testing.assert_close(model.ask(), half(images()), rtol=0, atol=0)
    request = json.loads(model.requests[-1][2])
    assert request["inputs"][0]["name"] == "input-0" and "outputs" not in request


def test_labels_and_two_channels_are_read_as_the_owner_says():
    def labels(values):
        return write_tensor("outputs", "y", (values[:, 0] > 0.5).astype(np.uint8), False)

    def nested(values):
        channels = np.stack([1 - values[:, 0], values[:, 0]], 1)
        output = {"name": "y", "datatype": "FP32", "shape": [*channels.shape], "data": channels.tolist(), "parameters": None}
        return json.dumps({"model_name": "lesions", "id": "7", "outputs": [output]}).encode(), {}

    with Model(labels) as model:
        assert torch.equal(model.ask(shows="labels"), (images()[:, 0] > 0.5).float())
    with Model(nested) as model:
        torch.testing.assert_close(model.ask(), images()[:, 0])


@pytest.mark.parametrize(
    "metadata, words",
    [
        (b"", ["does not say what it takes", "not JSON"]),
        (b"<html>", ["not JSON"]),
        (b"[" * 5000, ["not JSON"]),
        (b"[]", ["no message of the protocol"]),
        (b'{"inputs": [{"name": NaN}]}', ["not JSON"]),
        (b'{"inputs": [1]}', ["inputs.0"]),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}]}', ["inputs.0.shape.0"]),
        (METADATA | {"inputs": [tensor(), tensor("z")]}, ["has the inputs 'x', 'z'; allowed: one"]),
        (METADATA | {"outputs": [tensor("a"), tensor("b")]}, ["has the outputs 'a', 'b'; allowed: one"]),
        (METADATA | {"inputs": [tensor(datatype="INT64")]}, ["type 'INT64'; allowed: FP16, FP32, FP64"]),
        (METADATA | {"inputs": [tensor(datatype="FP16")]}, ["'FP16'", "binary_tensor_data: FP32, FP64"]),
        (METADATA | {"inputs": [tensor(shape=(-1, 1, 4, 4))]}, ["[-1, 1, 4, 4]; allowed: a batch of (3, 4, 4)"]),
        (METADATA | {"inputs": [tensor(shape=SHAPE)]}, ["[3, 4, 4]"]),
        (METADATA | {"inputs": [tensor(shape=(65, *SHAPE))]}, ["takes 65 images at a time"]),
        (b'{"x": "' + bytes(ENVELOPE) + b'"}', ["more than 65536 bytes"]),
        (None, ["the status 404"]),
    ],
)
def test_a_model_that_takes_something_else_is_refused(metadata, words):
    with Model(metadata=metadata) as model:
        sentence = model.refuses()
        assert all(word in sentence for word in words), sentence
        assert all(path != "/v2/models/lesions/infer" for path, *_ in model.requests), "images were sent"


def message(outputs: object) -> bytes:
    return json.dumps({"outputs": outputs}).encode()


def output(data: object, shape: tuple[int, ...] = (5, 4, 4), datatype: str = "FP32", **more: object) -> dict:
    return {"name": "y", "datatype": datatype, "shape": [*shape], "data": data, **more}


@pytest.mark.parametrize(
    "body, headers, words",
    [
        (b"", {}, "not JSON"),
        (b"{", {}, "not JSON"),
        (b"[" * 1000, {}, "not JSON"),
        (b"{}", {}, "outputs: Field required"),
        (message([]), {}, "the outputs none, not the one named 'y'"),
        (message([output([0]), output([0])]), {}, "the outputs 'y', 'y'"),
        (message([output([0]) | {"name": "z"}]), {}, "the outputs 'z', not the one named 'y'"),
        (message([output([0] * 79)]), {}, "79 numbers, its header says shape [5, 4, 4]"),
        (message([output([0] * 80, (5, -4, -4))]), {}, "its shape is [5, -4, -4]"),
        (message([output([0] * 80, (5, 4, 4_000_000_000_000))]), {}, "80 numbers"),
        (message([output([[0], [0, 0]])]), {}, "rows of equal length"),
        (message([output([{}] * 80)]), {}, "not numbers"),
        (message([output(["a"] * 80)]), {}, "not numbers"),
        (message([output([10**400] + [0] * 79)]), {}, "not numbers"),
        (message([output([None] * 80)]), {}, "not finite"),
        (message([output([1e39] + [0] * 79)]), {}, "not finite"),
        (message([output("0" * 80)]), {}, "1 numbers"),
        (message([output([0.5] * 80, datatype="UINT8")]), {}, "no UINT8 can be"),
        (message([output([256] * 80, datatype="UINT8")]), {}, "no UINT8 can be"),
        (message([output([0] * 80, datatype="BYTES")]), {}, "'BYTES'; allowed: BOOL, UINT8"),
        (message([output([0.5] * 80)]).replace(b"0.5", b"NaN"), {}, "not JSON"),
        (message([output([7] * 80)]), {}, "from 7 to 7"),
        (message([output([0] * 64, (4, 4, 4))]), {}, "the shape (4, 4, 4)"),
        (message([output(None, parameters={"binary_data_size": 320})]), {}, "none bytes of values"),
        (message([output(None, parameters={"binary_data_size": -1})]), {}, "binary_data_size"),
        (message([output([0] * 80)]), {JSON_LENGTH: "10"}, "not JSON"),
        (message([output([0] * 80)]), {JSON_LENGTH: "9999999"}, "Content-Length is '9999999'"),
        (message([output([0] * 80)]), {JSON_LENGTH: "-1"}, "Content-Length is '-1'"),
        (message([output([0] * 80)]), {JSON_LENGTH: "9" * 5000}, "Content-Length is '999"),
    ],
)
def test_an_answer_that_is_none_is_refused(body, headers, words):
    with Model(lambda values: (body, headers)) as model:
        assert words in (sentence := model.refuses()), sentence


def test_bytes_must_be_as_many_as_a_shape_has():
    def cut(values):
        body, headers = write_tensor("outputs", "y", values[:, 0] / 2, True)
        return body[:-1], headers

    def too_many(values):
        body, headers = write_tensor("outputs", "y", values[:, 0] / 2, True)
        return body + bytes(4), headers

    for answer, count in ((cut, 319), (too_many, 324)):
        with Model(answer) as model:
            assert f"has {count} bytes of values, its header says 320" in model.refuses()


def test_an_answer_is_read_no_further_than_one_could_be():
    with Model(lambda values: (b" " * 10**6, {})) as model:
        most = 25 * 2 * 80 + ENVELOPE
        assert f"more than {most} bytes; allowed for this request: {most}" in model.refuses()


@pytest.mark.parametrize("part", [b"[],", b"{},", b"1,", b'"ab",'])
def test_more_values_than_an_answer_has_are_not_even_parsed(monkeypatch, part):
    """Each would take tens of times its length in memory."""
    monkeypatch.setattr(inference, "from_json", lambda *args, **options: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match="more than 160 numbers"):
        read_response(b"[" + part * 70_000 + b"0]", None, 160, "y")


def test_a_metadata_page_of_the_server_that_is_none_means_no_extensions():
    for page in (None, b"", [], {"extensions": "binary_tensor_data"}, {"extensions": [1, None]}):
        with Model() as model:
            model.pages["/v2"] = page
            torch.testing.assert_close(model.ask(), half(images()), rtol=0, atol=0)


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", [*inference.DATATYPES])
def test_a_tensor_is_read_as_it_was_written(binary, datatype):
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(inference.DATATYPES[datatype])
    body, headers = write_tensor("outputs", "y", array, binary)
    back = read_response(body, headers.get(JSON_LENGTH.replace("-", "_")), 24, "y")
    assert back.dtype == array.dtype and np.array_equal(back, array)


def test_numbers_in_json_are_float32_to_the_last_digit():
    array = np.float32([[0.1, 1 / 3, 1e-45, 3.4e38]])
    body, _ = write_tensor("inputs", "x", array, False)
    assert np.array_equal(read_request(body, None, 4)[1], array)
    assert b"0.1," in write_tensor("inputs", "x", array.astype(np.float64).round(3), False)[0]


@given(st.data())
def test_no_message_makes_anything_but_a_sentence(data):
    """A message with some bytes changed is a tensor of the size that it was, or refused."""
    array = np.zeros((2, 3), np.float32)
    for binary in (True, False):
        body, headers = write_tensor("outputs", "y", array, binary)
        length = headers.get(JSON_LENGTH.replace("-", "_"))
        changed = bytearray(body)
        for place in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
            changed[place] = data.draw(st.integers(0, 255))
        with contextlib.suppress(ValueError):
            assert read_response(bytes(changed), length, 6, None).size <= len(body)


# --- the reference server ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(predictor=half, **options):
    with server(predictor, SHAPE, port=0, **options) as serving:
        thread = Thread(target=serving.run)
        thread.start()
        try:
            yield serving.address.rstrip("/")
        finally:
            serving.stop()
            thread.join()


def call(url: str, path: str, body: bytes | None = None, **headers: str):
    """Status, headers and body of one request."""
    import http.client

    connection = http.client.HTTPConnection(*url.removeprefix("http://").split(":"), timeout=60)
    with contextlib.closing(connection):
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_the_server_says_what_it_takes_and_gives():
    with running() as url:
        said = {
            path: json.loads(call(url, path)[2])
            for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/model", "/v2/models/model/ready")
        }
    assert said["/v2"]["extensions"] == [BINARY]
    assert said["/v2/health/live"] == {"live": True} and said["/v2/health/ready"] == {"ready": True}
    assert said["/v2/models/model/ready"] == {"name": "model", "ready": True}
    metadata = said["/v2/models/model"]
    assert metadata["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 4, 4]}]
    assert metadata["outputs"] == [{"name": "foreground", "datatype": "FP32", "shape": [-1, 4, 4]}]


@pytest.mark.parametrize("extensions", [[BINARY], []])
def test_client_and_server_understand_each_other(extensions, monkeypatch):
    monkeypatch.setattr(inference, "extensions", lambda body: extensions)
    with running() as url:
        suspect = connect(f"{url}/v2/models/model", SHAPE, CPU, Limits(batch=2))
        torch.testing.assert_close(suspect(images()), half(images()), rtol=0, atol=0)
        assert torch.equal(suspect(images()), connect(url, SHAPE, CPU)(images())), "one protocol says what the other does"


def test_a_request_in_json_by_hand():
    request = {"id": "7", "inputs": [{"name": "images", "shape": [1, 3, 4, 4], "datatype": "FP32", "data": [0.5] * 48}]}
    with running() as url:
        status, headers, body = call(url, "/v2/models/model/infer", json.dumps(request).encode())
        assert status == 200 and headers["Content-Type"] == "application/json"
        said = {"name": "foreground", "shape": [1, 4, 4], "datatype": "FP32", "data": [0.25] * 16}
        assert json.loads(body) == {"model_name": "model", "id": "7", "outputs": [said]}
        request["outputs"] = [{"name": "foreground", "parameters": {"binary_data": True}}]
        status, headers, body = call(url, "/v2/models/model/infer", json.dumps(request).encode())
        assert status == 200 and headers["Content-Type"] == "application/octet-stream"
        assert np.array_equal(np.frombuffer(body[int(headers[JSON_LENGTH]) :], "<f4"), np.full(16, 0.25))


def infer(values: np.ndarray, name: str = "images", **more: object) -> bytes:
    return write_tensor("inputs", name, values, False, **more)[0]


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "not JSON"),
        (b"[]", "no message of the protocol"),
        (b"[" * 10_000, "not JSON"),
        (b'{"inputs": []}', "it has 0 inputs, not one"),
        (infer(images(2).numpy(), "x"), "the tensors are 'x'; allowed: 'images', 'foreground'"),
        (infer(images(2).numpy(), outputs=[{"name": "z"}]), "the tensors are 'images', 'z'"),
        (infer(images(2).double().numpy()), "float64 (2, 3, 4, 4); allowed: float32 (B, 3, 4, 4), B from 1 to 8"),
        (infer(images(2)[:, :1].numpy()), "float32 (2, 1, 4, 4)"),
        (infer(images(9).numpy()), "(9, 3, 4, 4)"),
        (infer(images(0).numpy()), "(0, 3, 4, 4)"),
        (infer(images(2).numpy() * 255), "allowed: 0 to 1"),
        (infer(np.full((1, *SHAPE), np.nan, np.float32)).replace(b"null", b"NaN"), "not JSON"),
    ],
)
def test_the_server_answers_a_malformed_message_with_one_sentence(body, words):
    with running(most=8) as url:
        status, headers, said = call(url, "/v2/models/model/infer", body)
        error = json.loads(said)
        assert status == 400 and [*error] == ["error"] and words in error["error"] and "\n" not in error["error"]
        assert call(url, "/v2/models/model/infer", infer(images(2).numpy()))[0] == 200, "it does not answer any more"


@pytest.mark.parametrize(
    "path, body, headers, status, words",
    [
        ("/v2/models/other", None, {}, 404, "'/v2/models/model'"),
        ("/v2/models/other/infer", b"{}", {}, 404, "'/v2/models/model'"),
        ("/v2/models/model/infer", None, {}, 405, "by POST"),
        ("/v2/models/model/infer", bytes(ENVELOPE + 25 * 8 * 48 + 1), {}, 413, "which is 8 images"),
        ("/v2/models/model/infer", bytes(ENVELOPE + 4 * 8 * 48 + 1), {"Inference_Header_Content_Length": "1"}, 413, "8 images"),
        ("/v2/models/model/infer", b"{}", {"Inference_Header_Content_Length": "x"}, 400, "Content-Length is 'x'"),
    ],
)
def test_what_the_server_has_not_it_says(path, body, headers, status, words):
    with running(most=8) as url:
        answered, _, said = call(url, path, body, **headers)
        assert answered == status and words in json.loads(said)["error"]


def test_what_the_model_cannot_answer_is_the_servers_fault(capfd):
    def fails(batch: Tensor) -> Tensor:
        raise RuntimeError("the inside")

    with running(fails) as url:
        status, _, said = call(url, "/v2/models/model/infer", infer(images(1).numpy()))
        assert status == 500 and json.loads(said) == {"error": "the model failed: RuntimeError"}
        assert "RuntimeError: the inside" in capfd.readouterr().err
