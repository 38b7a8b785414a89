"""Suspects as their examiner describes them: files with known answers, in the forms that real ones have."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import Tensor
from torch.nn.functional import interpolate

from stealthmark import cli
from stealthmark.architecture import structure_log_odds
from stealthmark.errors import UserError
from stealthmark.suspects.connect import connect
from stealthmark.suspects.described import described
from stealthmark.suspects.inference import read_request, write_tensor
from stealthmark.suspects.interface import Interface, as_taken
from stealthmark.suspects.querier import Limits, Querier, Source
from stealthmark.suspects.remedies import coarser

CPU = torch.device("cpu")
SHAPE = (3, 8, 6)
HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Channels last in and out: the first channel.
LAST = """last (float[N,8,6,3] x) => (float[N,8,6,1] y) { y, second, third = Split <axis = 3> (x) }"""
#: What is taken, as it came, in three outputs.
SAME = """same (float[N,3,8,6] x) => (float[N,1,8,6] first, float[N,1,8,6] second, float[N,1,8,6] third) {
  first, second, third = Split <axis = 1> (x)
}"""
#: Four classes: the three channels and nothing.
CLASSES = """classes (float[N,3,8,6] x) => (TYPE y) {
  first, second, third = Split <axis = 1> (x)
  none = Sub (first, first)
  z = Concat <axis = 1> (none, first, second, third)
  BODY
}"""


def images(n: int = 5) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def logits() -> Tensor:
    return torch.cat([torch.zeros(5, 1, 8, 6), images()], 1)


@pytest.fixture
def ask(tmp_path):
    """The answers of a graph, described by the fields of an interface."""

    def ask(graph: str | onnx.ModelProto, shows: str = "probabilities", **fields) -> Tensor:
        graph = parser.parse_model(HEAD + graph) if isinstance(graph, str) else graph
        file = tmp_path / "suspect.onnx"
        file.write_bytes(graph.SerializeToString())
        return connect(file, SHAPE, CPU, Limits(), shows, Interface(**fields))(images())

    return ask


def classes(body: str, kind: str = "float[N,4,8,6]") -> str:
    return CLASSES.replace("TYPE", kind).replace("BODY", body)


def refusal(ask, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        ask(*args, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def answering(answer: np.ndarray, shows: str = "probabilities", **fields) -> Tensor:
    """What is made of an answer to as many images as it has."""
    source = Source(lambda images: answer, shows=shows)
    return Querier(described(source, Interface(**fields), SHAPE))(images(len(answer)))


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_the_default_describes_nothing():
    source = Source(lambda images: images[:, 0].numpy())
    assert described(source, Interface(), SHAPE) is source
    assert as_taken(images(), Interface()).equal(images())


def test_channels_last_in_and_out(ask):
    assert "describe it with --interface '{layout: nhwc}'" in refusal(ask, LAST)
    torch.testing.assert_close(ask(LAST, layout="nhwc"), images()[:, 0], rtol=0, atol=0)
    assert "describe it with --interface '{answers: nhwc}'" in refusal(ask, LAST, layout="nhwc", answers="nchw")


def test_another_size_is_named_and_taken(ask):
    larger = LAST.replace("8,6", "16,12")
    assert "describe it with --interface '{layout: nhwc, size: [16, 12]}'" in refusal(ask, larger)
    sent = interpolate(images(), size=(16, 12), mode="bilinear", align_corners=False)
    back = interpolate(sent[:, :1], size=(8, 6), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(ask(larger, layout="nhwc", size=(16, 12)), back)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_scale_colour_and_normalisation(scale, colour):
    mean, std = [scale * value for value in MEAN], [scale * value for value in STD]
    taken = as_taken(images(), Interface(scale=scale, colour=colour, mean=mean, std=std))
    channels = (0, 1, 2) if colour == "rgb" else (2, 1, 0)
    for place, channel in enumerate(channels):
        expected = (images()[:, channel] - MEAN[place]) / STD[place]
        torch.testing.assert_close(taken[:, place], expected, rtol=1e-5, atol=1e-5)


def test_a_graph_that_undoes_the_normalisation_answers_as_one_without(ask):
    undone = """undone (float[N,3,8,6] x) => (float[N,1,8,6] y) {
      first, second, third = Split <axis = 1> (x)
      std = Constant <value = float {58.0}> ()
      mean = Constant <value = float {100.0}> ()
      full = Constant <value = float {255.0}> ()
      scaled = Mul (first, std)
      shifted = Add (scaled, mean)
      y = Div (shifted, full)
    }"""
    answers = ask(undone, scale=255, colour="bgr", mean=100, std=58)
    torch.testing.assert_close(answers, images()[:, 2], rtol=1e-5, atol=1e-5)


def test_images_of_bytes(ask):
    graph = """bytes (uint8[N,3,8,6] x) => (float[N,1,8,6] y) {
      z = Cast <to = 1> (x)
      full = Constant <value = float {255.0}> ()
      all = Div (z, full)
      y, second, third = Split <axis = 1> (all)
    }"""
    assert "describe it with --interface '{scale: 255}'" in refusal(ask, graph)
    torch.testing.assert_close(ask(graph, scale=255), (images()[:, 0] * 255).round() / 255)
    assert "tensor(uint8)" in refusal(ask, graph, scale=255, mean=100)


# --- what is given ----------------------------------------------------------------------------------------------------


def test_one_of_several_outputs_is_read_by_its_name(ask):
    assert "describe it with --interface '{output: NAME}'" in refusal(ask, SAME)
    torch.testing.assert_close(ask(SAME, output="second"), images()[:, 1], rtol=0, atol=0)
    assert "has no output 'mask'; allowed: 'first', 'second', 'third'" in refusal(ask, SAME, output="mask")


@pytest.mark.parametrize("foreground", [(2,), (1, 3), (0,)])
def test_classes_by_softmax_and_by_logits(ask, foreground):
    expected = logits().softmax(1)[:, list(foreground)].sum(1)
    torch.testing.assert_close(ask(classes("y = Softmax <axis = 1> (z)"), foreground=foreground), expected)
    answers = ask(classes("y = Identity (z)"), shows="logits", foreground=foreground)
    torch.testing.assert_close(answers, structure_log_odds(logits(), foreground).sigmoid(), rtol=0, atol=0)
    torch.testing.assert_close(answers, expected)


def test_classes_have_to_be_chosen(ask):
    softmax = classes("y = Softmax <axis = 1> (z)")
    assert "describe it with --interface '{foreground: [...]}'" in refusal(ask, softmax)
    assert "4 classes" in (sentence := refusal(ask, softmax, size=(8, 6))) and "foreground: [...]" in sentence
    assert "'foreground' has [4]; allowed: some of 0 to 3, but not all" in refusal(ask, softmax, foreground=(4,))
    assert "'foreground' has [0, 1, 2, 3]" in refusal(ask, softmax, foreground=(0, 1, 2, 3))
    assert "one channel" in refusal(ask, SAME, output="first", foreground=(1,))


def test_classes_in_the_last_axis(ask):
    last = classes("s = Softmax <axis = 1> (z)\n y = Transpose <perm = [0, 2, 3, 1]> (s)", "float[N,8,6,4]")
    assert "describe it with --interface '{answers: nhwc, foreground: [...]}'" in refusal(ask, last)
    answers = ask(last, answers="nhwc", foreground=(1, 2))
    torch.testing.assert_close(answers, logits().softmax(1)[:, 1:3].sum(1))


def test_many_classes_are_read_unless_the_limits_say_otherwise(tmp_path):
    many = """many (float[N,3,8,6] x) => (float[N,9,8,6] y) { z = Concat <axis = 1> (x, x, x)\n y = Softmax <axis = 1> (z) }"""
    file = tmp_path / "many.onnx"
    file.write_bytes(parser.parse_model(HEAD + many).SerializeToString())
    answers = connect(file, SHAPE, CPU, interface=Interface(foreground=(0, 3, 6)))(images())
    torch.testing.assert_close(answers, images().softmax(1)[:, 0])
    with pytest.raises(UserError, match=r"describe it with --interface '{foreground: \[...\]}', or allow more 'pixel_bytes'"):
        connect(file, SHAPE, CPU)(images())
    with pytest.raises(UserError, match="allowed for these images"):
        connect(file, SHAPE, CPU, Limits(pixel_bytes=16), interface=Interface(foreground=(0,)))(images())


def test_labels_of_several_classes(ask):
    labels = classes("y = ArgMax <axis = 1, keepdims = 0> (z)", "int64[N,8,6]")
    largest = logits().argmax(1)
    assert "describe it with --interface '{shows: labels}'" in refusal(ask, labels)
    assert "describe it with --interface '{foreground: [...]}'" in refusal(ask, labels, "labels")
    assert ask(labels, "labels", foreground=(2,)).equal((largest == 2).float())
    assert ask(labels, shows="labels", foreground=(1, 3)).equal(((largest == 1) | (largest == 3)).float())


def test_masks_of_255(ask):
    masks = """masks (float[N,3,8,6] x) => (uint8[N,1,8,6] y) {
      first, second, third = Split <axis = 1> (x)
      more = Greater (first, second)
      full = Constant <value = float {255.0}> ()
      z = Cast <to = 1> (more)
      scaled = Mul (z, full)
      y = Cast <to = 2> (scaled)
    }"""
    expected = (images()[:, 0] > images()[:, 1]).float()
    assert "describe it with --interface '{shows: labels, peak: 255}'" in refusal(ask, masks)
    assert "describe it with --interface '{peak: 255}'" in refusal(ask, masks, "labels")
    assert ask(masks, "labels", peak=255).equal(expected)
    assert ask(masks, "labels", foreground=(255,)).equal(expected)


def test_logits_at_a_quarter_of_the_size_are_enlarged_as_logits(ask):
    quarter = classes("y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (z)", "float[N,4,4,3]")
    assert "describe it with --interface '{foreground: [...], shows: logits}'" in refusal(ask, quarter, "logits")
    coarse = torch.nn.functional.avg_pool2d(logits(), 2)
    full = interpolate(coarse, size=(8, 6), mode="bilinear", align_corners=False)
    answers = ask(quarter, shows="logits", foreground=(1, 3))
    torch.testing.assert_close(answers, structure_log_odds(full, (1, 3)).sigmoid())


def test_two_channels_and_labels_at_a_smaller_size():
    coarse = torch.rand(2, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    full = interpolate(coarse, size=(8, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(answering(coarse.numpy(), shows="logits", answers="nchw"), (full[:, 1] - full[:, 0]).sigmoid())
    labels = (coarse[:, 0] > 0.5).long()
    enlarged = labels.repeat_interleave(2, 1).repeat_interleave(2, 2).float()
    assert answering(labels.numpy(), "labels", answers="hw").equal(enlarged)


@pytest.mark.parametrize(
    "answer, fields, words",
    [
        (np.full((2, 8, 6), 1.5, np.float32), {}, ["from 1.5 to 1.5"]),
        (np.full((2, 4, 3), -1.5, np.float32), {}, ["from -1.5", "{shows: logits}"]),
        (np.full((2, 8, 6), 200.0, np.float32), {}, ["{peak: 255}"]),
        (np.full((2, 8, 6), 254), {"shows": "labels", "peak": 255}, ["the label 254; allowed: 0 and 255"]),
        (np.full((2, 8, 6), 0.5), {"shows": "labels", "foreground": (1,)}, ["the label 0.5; allowed: whole numbers"]),
        (np.full((2, 8, 6), -1), {"shows": "labels", "foreground": (1,)}, ["the label -1"]),
        (np.full((2, 8, 6), np.nan), {"shows": "labels", "foreground": (1,)}, ["not finite"]),
        (np.full((2, 3, 8, 6), 0.5), {"shows": "labels", "foreground": (1, 2)}, ["the label 0.5"]),
        (np.full((2, 3, 8, 6), 0.9), {"foreground": (1, 2)}, ["add up to 2.7 to 2.7"]),
        (np.full((2, 8, 6), 1), {"shows": "logits"}, ["type int64; allowed as logits: floats"]),
        (np.full((2, 8, 6, 1), 0.5), {"answers": "hw"}, ["(2, 8, 6, 1)", "{answers: nhwc}"]),
        (np.full((2, 1, 8, 6), 0.5), {"layout": "nhwc"}, ["(2, 1, 8, 6)", "{answers: nchw}"]),
        (np.full((2, 6, 8), 0.5), {}, ["(2, 6, 8)"]),
        (np.full((2, 16, 12), 0.5), {}, ["(2, 16, 12)"]),
        (np.full((2, 300, 8, 6), 0.5), {"foreground": (1,)}, ["(2, 300, 8, 6)"]),
        (np.full((2, 6), 0.5), {}, ["(2, 6)"]),
    ],
)
def test_what_an_interface_does_not_describe_is_refused(answer, fields, words):
    with pytest.raises(UserError) as error:
        answering(answer, **{"shows": "probabilities", "colour": "bgr", **fields})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_map_is_coarser_when_it_has_the_form_of_the_images():
    assert coarser((24, 32), (96, 128)) and coarser((96, 128), (96, 128)) and coarser((24, 33), (96, 130))
    assert not coarser((96, 4), (96, 96)) and not coarser((192, 192), (96, 96)) and not coarser((1, 1), (96, 96))


# --- the interface itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, word",
    [({"mean": (0.5, 0.5)}, "'mean'"), ({"std": (1, 2, 3, 4)}, "'std'"), ({"peak": 255, "shows": "logits"}, "'peak'")],
)
def test_an_interface_that_does_not_fit_is_refused(fields, word):
    with pytest.raises(UserError, match=word):
        described(Source(lambda images: images), Interface(**fields), SHAPE)


def test_grey_images_have_no_order_of_colours():
    with pytest.raises(UserError, match="allowed for 1 channels: 'rgb'"):
        described(Source(lambda images: images), Interface(colour="bgr"), (1, 8, 6))


def test_a_folder_needs_no_description(tmp_path):
    with pytest.raises(UserError, match="a folder, whose interface is known"):
        connect(tmp_path, SHAPE, CPU, interface=Interface(scale=255))


def test_an_address_without_named_outputs_has_none_to_choose():
    with pytest.raises(UserError, match="field 'output' has the value 'mask'"):
        connect("http://127.0.0.1:9/", SHAPE, CPU, interface=Interface(output="mask"))


@pytest.fixture
def service(monkeypatch):
    """A service of the Open Inference Protocol with two outputs, channels last: its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sides = [-1, 8, 6, 3]
    named = [{"name": name, "datatype": "FP32", "shape": [-1, 8, 6, 1]} for name in ("box", "mask")]
    metadata = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": sides}], "outputs": named}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(json.dumps(metadata if self.path.endswith("/model") else {"extensions": []}).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request, values = read_request(body, None, 10**6)
            assert values.dtype == np.uint8 and request.outputs is not None and request.outputs[0].name == "mask"
            self.reply(write_tensor("outputs", "mask", values[..., :1].astype(np.float32) / 255, False)[0])

        def reply(self, content: bytes):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield "http://{}:{}/v2/models/model".format(*serving.server_address)
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_service_with_two_outputs_that_takes_bytes_channels_last(service):
    def refused(**fields) -> str:
        with pytest.raises(UserError) as error:
            connect(service, SHAPE, CPU, Limits(retries=0), interface=Interface(**fields))
        return str(error.value)

    assert "describe it with --interface '{output: NAME}'" in refused()
    assert "has no output 'seg'; allowed: 'box', 'mask'" in refused(output="seg")
    assert "describe it with --interface '{scale: 255}'" in refused(output="mask")
    assert "describe it with --interface '{layout: nhwc}'" in refused(output="mask", scale=255)
    suspect = connect(service, SHAPE, CPU, interface=Interface(output="mask", scale=255, layout="nhwc"))
    torch.testing.assert_close(suspect(images()), (images()[:, 0] * 255).round() / 255)


def test_certify_names_the_field_of_an_interface(tmp_path, capsys):
    words = ["--data", "d", "--key", "k", "--suspect", "s", "--out", str(tmp_path)]
    assert cli.main(["certify", *words, "--interface", "{layout: chw}"]) == 1
    assert "--interface: " in (sentence := capsys.readouterr().err) and "layout" in sentence and "nhwc" in sentence


def test_weights_in_a_second_file_are_refused_with_the_remedy(tmp_path):
    weight = numpy_helper.from_array(np.full((1, 3, 1, 1), 0.25, np.float32), "w")
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1, 8, 6])
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [entry], [answer], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(UserError, match=r"in another file, .*onnx.save\(onnx.load\(FILE\), OTHER\)"):
        connect(tmp_path / "two.onnx", SHAPE, CPU)
    onnx.save(onnx.load(tmp_path / "two.onnx"), tmp_path / "one.onnx")
    torch.testing.assert_close(connect(tmp_path / "one.onnx", SHAPE, CPU)(images()), images().sum(1) / 4)
