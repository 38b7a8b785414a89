"""ONNX files as suspects: handmade graphs with known answers, and graphs made to harm."""

import gc
import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import Tensor

from stealthmark import architecture, cli
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.suspects import onnx_child
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.frames import ANSWER, READY, read_frame, write_frame
from stealthmark.suspects.onnx import export
from stealthmark.suspects.querier import Limits

CPU = torch.device("cpu")
SHAPE = (3, 4, 4)
HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'
#: Half of the first channel.
HALF = """half (float[N,3,4,4] x) => (float[N,1,4,4] y) {
  first, second, third = Split <axis = 1> (x)
  two = Constant <value = float {2}> ()
  y = Div (first, two)
}"""


def images(n: int = 5, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def written(tmp_path):
    """Write a graph as a file; the file."""

    def written(graph: str | onnx.ModelProto | bytes):
        graph = parser.parse_model(HEAD + graph) if isinstance(graph, str) else graph
        file = tmp_path / "suspect.onnx"
        file.write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
        return file

    return written


def refused(file, limits: Limits = Limits(), device: torch.device = CPU) -> str:  # noqa: B008 (frozen)
    """The sentence in which opening the file, or asking it, ends."""
    with pytest.raises(UserError) as error:
        connect(file, SHAPE, device, limits)(images())
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_handmade_graph_gives_its_known_answers(written):
    suspect = connect(written(HALF), SHAPE, CPU, Limits(batch=2))
    torch.testing.assert_close(suspect(images()), images()[:, 0] / 2, rtol=0, atol=0)
    assert suspect.sent == 5


def test_what_a_graph_shows_is_for_the_owner_to_say(written):
    torch.testing.assert_close(
        connect(written(HALF), SHAPE, CPU, shows="logits")(images()), (images()[:, 0] / 2).sigmoid(), rtol=0, atol=0
    )
    assert "the label" in str(pytest.raises(UserError, connect(written(HALF), SHAPE, CPU, shows="labels"), images()).value)


@pytest.mark.parametrize("kind, dtype", [("float16", np.float16), ("double", np.float64)])
def test_images_are_given_in_the_type_that_the_graph_takes(written, kind, dtype):
    graph = f"same ({kind}[N,3,4,4] x) => ({kind}[N,1,4,4] y) {{ y, second, third = Split <axis = 1> (x) }}"
    expected = torch.from_numpy(images()[:, 0].numpy().astype(dtype).astype(np.float32))
    torch.testing.assert_close(connect(written(graph), SHAPE, CPU)(images()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("fixed", [1, 2, 3, 5])
def test_a_graph_for_a_fixed_number_of_images_is_given_that_many(written, fixed):
    suspect = connect(written(HALF.replace("N", str(fixed))), SHAPE, CPU)
    torch.testing.assert_close(suspect(images()), images()[:, 0] / 2, rtol=0, atol=0)
    assert suspect.sent == 5, "what fills up a batch is no query"


def test_what_was_opened_is_what_is_described(written):
    source = connect(written(HALF), SHAPE, CPU).source
    assert describe_suspect(written(HALF)) == {"name": "suspect.onnx", "kind": source.kind, "sha256": source.sha256}


def test_an_export_that_cannot_be_written_leaves_nothing(tmp_path, capsys):
    assert cli.main(["export", "--model", str(tmp_path), "--out", str(tmp_path / "model.onnx")]) == 1
    assert "is not a checkpoint: card.json is absent" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_an_export_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    options = make("architecture", {"name": "unet", "weights": "random"}).options()
    model = make("architecture", options).build(3, pretrained=False, size=32)
    architecture.save(model, architecture.card_for(options, 3, 32), tmp_path / "model")
    other = parser.parse_model(HEAD + HALF.replace("4,4", "32,32"))
    program = type("Program", (), {"model": None, "save": lambda self, path, **_: onnx.save(other, path)})
    monkeypatch.setattr("torch.onnx.export", lambda *args, **options: program())
    monkeypatch.setattr("onnxscript.ir.passes.common.ClearMetadataAndDocStringPass", lambda: lambda model: None)
    with pytest.raises(UserError, match="answers otherwise than the network in .*; allowed: 1e-05"):
        export(tmp_path / "model", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph, words",
    [
        ("g (float[N,1,4,4] x) => (float[N,1,4,4] y) { y = Relu (x) }", ["['N', 1, 4, 4]", "allowed: a batch of (3, 4, 4)"]),
        ("g (float[N,3,4,8] x) => (float[N,3,4,8] y) { y = Relu (x) }", ["['N', 3, 4, 8]"]),
        ("g (float[N,4,4] x) => (float[N,4,4] y) { y = Relu (x) }", ["['N', 4, 4]"]),
        ("g (float[65,3,4,4] x) => (float[65,3,4,4] y) { y = Relu (x) }", ["takes 65 images at a time", "from 1 to 64"]),
        ("g (int64[N,3,4,4] x) => (int64[N,3,4,4] y) { y = Identity (x) }", ["tensor(int64)", "tensor(float)"]),
        (
            "g (float[N,3,4,4] x, float z) => (float[N,3,4,4] y) { y = Add (x, z) }",
            ["inputs 'x'", "allowed: one tensor"],
        ),
        ("g () => (float y) { y = Constant <value = float {2}> () }", ["the inputs none"]),
        ("g (float[N,3,4,4] x) => (float[N,3,4,4] y, float[N,3,4,4] z) { y = Relu (x) z = Relu (x) }", ["outputs 'y'", "'z'"]),
        ("g (float[N,3,4,4] x) => (seq(float[N,3,4,4]) y) { y = SequenceConstruct (x) }", ["outputs 'y' seq(tensor(float))"]),
        ("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu (w) }", ["cannot be opened"]),
        ("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Divide (x, x) }", ["cannot be opened", "Divide"]),
        ("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = com.evil.Run (x) }", ["cannot be opened"]),
        ("g (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu (x) }", ["the shape (5, 3, 4, 4)", "(5, 1, 4, 4)"]),
        ("g (float[N,3,4,4] x) => (float[M] y) { s = Constant <value = int64[1] {-1}> () y = Reshape (x, s) }", ["(240,)"]),
        (
            "g (float[N,3,4,4] x) => (float[M] y) { s = Constant <value = int64[1] {7}> () y = Reshape (x, s) }",
            ["cannot be run"],
        ),
        (HALF.replace("Div (first, two)", "Div (first, zero)").replace("two", "zero").replace("{2}", "{0}"), ["not finite"]),
        (HALF.replace("{2}", "{0.1}"), ["allowed as probabilities: from 0 to 1"]),
    ],
)
def test_a_graph_for_something_else_is_refused(written, graph, words):
    sentence = refused(written(graph))
    assert all(word in sentence for word in words), sentence


def test_a_fixed_number_of_answers_must_be_the_number_of_images(written):
    graph = HALF.replace("[N,", "[2,").replace("y = Div (first, two)", "y = Concat <axis = 0> (first, first)")
    assert "the shape (4, 1, 4, 4)" in refused(written(graph.replace("[2,1,4,4] y", "[M,1,4,4] y")))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x0a", b"PK\x03\x04" + bytes(100), HALF.encode()])
def test_a_file_that_is_not_onnx_is_refused(written, content):
    assert "is not an ONNX file" in (sentence := refused(written(content))) or "cannot be opened" in sentence


def test_a_damaged_file_is_refused(written):
    whole = parser.parse_model(HEAD + HALF).SerializeToString()
    for length in range(len(whole)):
        with pytest.raises(onnx_child.Refusal) as error:
            onnx_child.opened(whole[:length], 1, cuda=False)
        assert len(str(error.value)) < 500
    assert len(refused(written(whole[:-1]))) < 500


def test_names_that_are_no_text_are_a_sentence(written):
    content = parser.parse_model(HEAD + HALF.replace("N,", "NNNN,")).SerializeToString()
    assert content.count(b"NNNN") == 2
    assert "suspect.onnx" in refused(written(content.replace(b"NNNN", b"\xff\xfe\x80N")))
    content = parser.parse_model(HEAD + HALF.replace("(x)", "(image)").replace(" x)", " image)")).SerializeToString()
    assert "suspect.onnx" in refused(written(content.replace(b"image", b"\xff\xfe\x80ge")))


def test_a_file_in_onnxruntimes_own_format_is_refused(written, tmp_path):
    """It is not what was checked for references to other files."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(parser.parse_model(HEAD + HALF).SerializeToString(), options, ["CPUExecutionProvider"])
    assert "suspect.onnx" in refused(written((tmp_path / "model.ort").read_bytes()))


def test_a_file_that_is_too_large_is_not_read(written, monkeypatch):
    file = written(HALF)
    size = file.stat().st_size
    connect(file, SHAPE, CPU, Limits(file_bytes=size))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("it was read"))
    assert f"holds {size} bytes; allowed: {size - 1}" in refused(file, Limits(file_bytes=size - 1))


def test_what_is_no_regular_file_is_not_read(tmp_path):
    """Reading a pipe or a socket would wait for ever."""
    os.mkfifo(tmp_path / "pipe.onnx")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.onnx"))
        for name in ("pipe", "socket"):
            assert "there is no suspect" in refused(tmp_path / f"{name}.onnx")


def external(location: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "stolen")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


PLACES = ["initialiser", "attribute", "subgraph", "function", "sparse"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd", "/etc/passwd"])
def test_a_reference_to_another_file_is_refused_wherever_it_stands(written, tmp_path, monkeypatch, place, location):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(16))  # it is there, and would be read
    model = parser.parse_model(HEAD + HALF)
    node = helper.make_node("Constant", [], ["more"], value=external(location))
    if place == "initialiser":
        model.graph.initializer.append(external(location))
    elif place == "attribute":
        model.graph.node.append(node)
    elif place == "subgraph":
        body = helper.make_graph([node], "body", [], [helper.make_tensor_value_info("more", TensorProto.FLOAT, [4])])
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        model.graph.node.extend([yes, helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=body)])
    elif place == "function":
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", "F", [], ["more"], [node], opset))
    else:
        model.graph.sparse_initializer.add(values=external(location), dims=[9])
    sentence = refused(written(model))
    assert f"keeps the tensor 'stolen' in another file, {location!r}; allowed: all inside of it" in sentence
    assert sentence.endswith("as onnx.save(onnx.load(FILE), OTHER) writes it"), "the remedy is named"


# --- a file that takes its time, or all memory ------------------------------------------------------------------------

ENDLESS = """endless (float[N,3,4,4] x) => (float[N,3,4,4] y) {
  trips = Constant <value = int64 {9223372036854775807}> ()
  yes = Constant <value = bool {1}> ()
  y = Loop (trips, yes, x) <body = body (int64 i, bool c, float[N,3,4,4] a) => (bool d, float[N,3,4,4] b) {
    d = Identity (c)
    b = Add (a, a)
  }>
}"""


def multiplying(square: str, side: int = 8000) -> str:
    """A graph that multiplies large squares with each other, which nothing interrupts."""
    return f"""g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{
      sides = Constant <value = int64[2] {{{side}, {side}}}> ()
      one = Constant <value = float {{1}}> ()
      asked = ReduceSum <keepdims = 0> (x)
      square = {square}
      more = MatMul (square, square)
      most = MatMul (more, square)
      mean = ReduceMean <keepdims = 0> (most)
      y = Mul (x, mean)
    }}"""


WHEN_OPENED, WHEN_ASKED = "Expand (one, sides)", "Expand (asked, sides)"
HARMFUL = {
    "a loop without end": ENDLESS,
    "constants that are folded": multiplying(WHEN_OPENED),
    "one multiplication": multiplying(WHEN_ASKED),
}


@pytest.mark.parametrize("graph", HARMFUL.values(), ids=HARMFUL)
def test_a_file_that_takes_too_long_is_stopped(written, graph, started):
    begun = monotonic()
    assert "gives no answer within 1 s" in refused(written(graph), Limits(timeout=1))
    assert monotonic() - begun < 60
    (process,) = started
    assert process.wait(60) == -signal.SIGKILL


def test_a_file_that_was_stopped_has_to_be_opened_again(written, started):
    file = written(ENDLESS)
    suspect = connect(file, SHAPE, CPU, Limits(timeout=1))
    for _ in range(2):
        with pytest.raises(UserError, match="gives no answer within 1 s"):
            suspect(images())
    assert len(started) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no bound on memory")
@pytest.mark.parametrize("square", [WHEN_OPENED, WHEN_ASKED])
def test_a_file_that_takes_all_memory_is_refused(written, square):
    sentence = refused(written(multiplying(square, 100_000)), Limits(memory_bytes=2**30))
    assert sentence.endswith("it needs more memory; allowed: 1073741824 bytes of memory")


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no bound on memory")
def test_memory_that_suffices_for_nothing_is_a_sentence(written):
    assert "allowed: 1000 bytes of memory" in refused(written(HALF), Limits(memory_bytes=1000))


# --- the process that a file runs in ----------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that were started."""
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        "stealthmark.suspects.onnx.subprocess.Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1]
    )
    return started


def test_one_process_answers_all_requests_and_ends_with_its_suspect(written, started):
    suspect = connect(written(HALF), SHAPE, CPU, Limits(batch=1))
    suspect(images())
    suspect(images(7))
    (process,) = started
    assert process.poll() is None
    del suspect
    gc.collect()
    assert process.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    "graph", ["g (float[N,3,4,8] x) => (float[N,3,4,8] y) { y = Relu (x) }", ENDLESS.replace("Loop", "Lop")]
)
def test_the_process_of_a_file_that_is_refused_has_ended(written, started, graph):
    refused(written(graph))
    (process,) = started
    assert process.poll() == -signal.SIGKILL


PARENT = """
import subprocess, sys, torch
start = subprocess.Popen
def starting(*arguments, **options):
    process = start(*arguments, **options)
    print(process.pid, flush=True)
    return process
subprocess.Popen = starting
from stealthmark.suspects.connect import connect
suspect = connect(sys.argv[1], (3, 4, 4), torch.device("cpu"))
print("opened", flush=True)
suspect(torch.zeros(1, 3, 4, 4) if sys.argv[2] == "asks" else torch.zeros(0, 3, 4, 4))
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look for a process in")
@pytest.mark.parametrize("what", ["asks", "waits"])
def test_the_process_ends_with_its_parent_however_that_ends(written, what):
    """Killed while the network works, and while it waits."""
    command = [sys.executable, "-c", PARENT, str(written(ENDLESS)), what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "opened\n" and lives(pid)
        parent.kill()
    end = monotonic() + 60
    while lives(pid):
        assert monotonic() < end, "it outlived its parent"


def lives(pid: int) -> bool:
    """Whether a process is there, and not only its entry, which waits for somebody to read how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_process_imports_no_torch():
    program = (
        "import sys, stealthmark.suspects.onnx_child as _; print(*{'torch', 'requests', 'pandas', 'pydantic'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


LIAR = """
import os, pickle, sys, time
from stealthmark.suspects.frames import *
def read():
    for _ in range(2):
        read_frame(sys.stdin.buffer, {JOB: 10**9})
out = sys.stdout.buffer
write_frame(out, READY)
read()
tensor = b'[{"name": "x", "type": "tensor(float)", "shape": [null, 3, 4, 4]}]'
opened = b'{"inputs": ' + tensor + b', "outputs": ' + tensor + b'}'
"""
OPENS = "write_frame(out, DESCRIBED, opened)\nread()\n"


@pytest.mark.parametrize(
    "lies, words",
    [
        ("write_frame(out, DESCRIBED, b'{')", "cannot be opened: "),
        ('write_frame(out, DESCRIBED, b\'{"inputs": [], "outputs": 1}\')', "cannot be opened: "),
        ("write_frame(out, DESCRIBED, bytes(2000000))", "cannot be opened: its process ended by SIGKILL"),
        ("write_frame(out, ANSWER, b'')", "cannot be opened: its process ended by SIGKILL"),
        ("write_frame(out, REFUSED, b'says\\n\\x1b[31m' + bytes([255]))", "says??[31m"),
        ("out.write(b'garbage garbage'); out.flush()", "cannot be opened: its process ended by SIGKILL"),
        ("sys.exit(7)", "cannot be opened: its process ended"),
        (
            OPENS + "out.write(b'A' + (2**62).to_bytes(8, 'big') + bytes(100)); out.flush()",
            "cannot be run: its process ended by",
        ),
        (OPENS + "write_frame(out, ANSWER, pickle.dumps([1]))", "not an .npy array"),
        (OPENS + "write_frame(out, ANSWER, b'')", "not an .npy array"),
        (OPENS + "out.write(b'A' + (100).to_bytes(8, 'big')); out.flush(); sys.exit()", "cannot be run: its process ended"),
        (OPENS + "out.write(b'A' + (100).to_bytes(8, 'big')); out.flush(); read()", "gives no answer within 2 s"),
    ],
)
def test_a_process_that_a_file_has_taken_over_is_not_believed(written, tmp_path, monkeypatch, lies, words):
    (tmp_path / "liar.py").write_text(LIAR + lies + "\nsys.stdin.read()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("stealthmark.suspects.onnx.CHILD", "liar")
    assert words in refused(written(HALF), Limits(timeout=2))


def test_frames_are_read_as_they_were_written():
    stream = io.BytesIO()
    write_frame(stream, ANSWER, b"abc")
    write_frame(stream, READY)
    written = stream.getvalue()
    stream.seek(0)
    assert read_frame(stream, {ANSWER: 3, READY: 0}) == (ANSWER, b"abc")
    assert read_frame(stream, {ANSWER: 3, READY: 0}) == (READY, b"")
    for length in range(len(written) - 9):
        with pytest.raises(EOFError):
            read_frame(io.BytesIO(written[:length] if length < 12 else b""), {ANSWER: 3})
    for most in ({ANSWER: 2}, {READY: 9}):
        with pytest.raises(ValueError, match="3 bytes; allowed"):
            read_frame(io.BytesIO(written), most)


def test_without_a_gpu_for_onnxruntime_the_cpu_answers(written, monkeypatch):
    """A CUDA device for torch does not mean that this onnxruntime can use it."""
    for available, expected in (
        (["AzureExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]),
    ):
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda providers=available: providers)
        assert onnx_child.providers(cuda=True) == expected and onnx_child.providers(cuda=False) == ["CPUExecutionProvider"]
    connect(written(HALF), SHAPE, torch.device("cuda"))(images())
