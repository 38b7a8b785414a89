"""Suspects: what of an answer is believed, what is remembered, what is counted, and what is opened."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stealthmark import architecture, cli
from stealthmark.access import LEVELS, at_access
from stealthmark.errors import UserError
from stealthmark.plugin import make
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.function import from_function
from stealthmark.suspects.querier import Limits, Querier, Source, probabilities

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)


def images(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 2, 2)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


class Half:
    """Answers with half of the first channel, and notes how many images each request had."""

    def __init__(self):
        self.requests: list[int] = []

    def __call__(self, batch: Tensor) -> np.ndarray:
        self.requests.append(len(batch))
        return (batch[:, 0] / 2).numpy()


# --- what an answer may be --------------------------------------------------------------------------------------------

ONE = torch.zeros(1, 3, 1, 2)
LN3 = float(np.log(3))


@pytest.mark.parametrize(
    "answer, shows, expected",
    [
        (np.array([[[0.25, 1]]]), "probabilities", [0.25, 1]),
        (np.array([[[[0.25, 1]]]], np.float16), "probabilities", [0.25, 1]),
        (np.array([[[[0.75, 0]], [[0.25, 1]]]], ">f4"), "probabilities", [0.25, 1]),
        (np.array([[[1 + 1e-6, -1e-6]]]), "probabilities", [1, 0]),
        (np.array([[[[1, 0.9]], [[0.1, 0.0]]]], np.float32), "probabilities", [0.1, 0]),  # rounded to 0.1
        (np.array([[[0, -LN3]]]), "logits", [0.5, 0.25]),
        (np.array([[[[1, 5]], [[1 + LN3, 5]]]]), "logits", [0.75, 0.5]),
        (np.array([[[800.0, -800.0]]]), "logits", [1, 0]),
        (np.array([[[True, False]]]), "labels", [1, 0]),
        (np.array([[[1, 0]]], np.uint8), "labels", [1, 0]),
        (np.array([[[[0, 1]], [[1, 0]]]], np.int64), "labels", [1, 0]),
        (np.array([[[1, 0]]], np.float64), "labels", [1, 0]),
    ],
)
def test_answers_become_the_foregrounds_probabilities(answer, shows, expected):
    values = probabilities(answer, ONE, shows, "it")
    assert values.dtype == torch.float32 and values.shape == (1, 1, 2)
    assert values.flatten().tolist() == pytest.approx(expected, abs=1e-6) and values.min() >= 0 and values.max() <= 1


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "answer, shows, words",
    [
        (np.zeros((2, 1, 2)), "probabilities", ["(2, 1, 2)", "(1, 1, 2), (1, 1, 1, 2), (1, 2, 1, 2)"]),
        (np.zeros((1, 2)), "probabilities", ["(1, 2)"]),
        (np.zeros((1, 3, 1, 2)), "logits", ["(1, 3, 1, 2)"]),
        (np.zeros((1, 2, 1)), "labels", ["(1, 2, 1)"]),
        (np.zeros((1, 1, 2), np.uint8), "probabilities", ["uint8", "allowed as probabilities: floats"]),
        (np.zeros((1, 1, 2), np.int64), "logits", ["int64", "allowed as logits: floats"]),
        (np.zeros((1, 1, 2), complex), "labels", ["complex128"]),
        (np.zeros((1, 1, 2), object), "labels", ["object"]),
        (np.array([[[0, NAN]]]), "probabilities", ["not finite"]),
        (np.array([[[0, -INF]]]), "logits", ["not finite"]),
        (np.array([[[0, 1e300]]]), "logits", ["not finite"]),  # in float32
        (np.array([[[0, NAN]]]), "labels", ["not finite"]),
        (np.array([[[-0.5, 1.5]]]), "probabilities", ["from -0.5 to 1.5", "from 0 to 1"]),
        (np.array([[[0, 1.001]]]), "probabilities", ["1.001"]),
        (np.array([[[0, 255]]]), "labels", ["the label 255", "0 and 1"]),
        (np.array([[[0, -1]]]), "labels", ["the label -1"]),
        (np.array([[[0, 0.5]]]), "labels", ["the label 0.5"]),
        (np.array([[[[0.5, 0.5]], [[0.5, 1]]]]), "probabilities", ["add up to 1 to 1.5"]),
        (np.array([[[[0, 0]], [[1, 0]]]]), "labels", ["add up to 0 to 1"]),
    ],
)
def test_any_other_answer_is_refused_in_a_sentence(answer, shows, words):
    with pytest.raises(UserError) as error:
        probabilities(answer, ONE, shows, "models/x")
    sentence = str(error.value)
    assert sentence.startswith("models/x answers with ") and "\n" not in sentence
    assert all(word in sentence for word in words), sentence


# --- batches, memory, budget ------------------------------------------------------------------------------------------


def test_images_are_sent_in_batches_and_answered_in_order():
    half = Half()
    querier = Querier(Source(half), Limits(batch=4))
    queries = images(10)
    torch.testing.assert_close(querier(queries), queries[:, 0] / 2, rtol=0, atol=0)
    assert half.requests == [4, 4, 2] and querier.sent == 10


def test_an_image_is_sent_once_whatever_batch_it_comes_in():
    half = Half()
    querier = Querier(Source(half))
    queries = images(6)
    querier(queries[:4])
    order = [5, 2, 0, 5, 4, 2]
    torch.testing.assert_close(querier(queries[order]), queries[order, 0] / 2, rtol=0, atol=0)
    assert half.requests == [4, 2] and querier.sent == 6


def test_what_is_given_out_can_be_changed_without_changing_what_is_remembered():
    querier = Querier(Source(Half()))
    queries = images(3)
    first = querier(queries)
    kept = first.clone()
    first.zero_()
    querier(queries).zero_()
    assert kept.max() > 0 and torch.equal(querier(queries), kept) and querier.sent == 3


def test_the_same_values_in_another_shape_or_order_are_another_image():
    half = Half()
    querier = Querier(Source(half))
    tall = torch.arange(8.0).view(1, 1, 4, 2) / 8
    assert querier(tall).shape == (1, 4, 2) and querier(tall.view(1, 1, 2, 4)).shape == (1, 2, 4)
    querier(tall.view(1, 2, 2, 2))
    assert querier.sent == 3
    querier(tall.view(1, 2, 2, 2).contiguous(memory_format=torch.channels_last))
    assert querier.sent == 3, "strides are not part of an image"


def test_no_images_are_no_query():
    half = Half()
    assert Querier(Source(half), Limits(budget=0))(images(0)).shape == (0, 2, 2) and half.requests == []


def test_a_budget_is_never_exceeded_and_what_is_remembered_is_free():
    half = Half()
    querier = Querier(Source(half), Limits(batch=2, budget=5))
    querier(images(3))
    with pytest.raises(UserError, match="would be asked 3 images more after 3; the budget allows 5 in all"):
        querier(images(3, seed=1))
    assert half.requests == [2, 1] and querier.sent == 3, "part of the call was sent"
    querier(images(3))
    querier(torch.cat([images(3), images(2, seed=2)]))
    assert querier.sent == 5


def test_a_query_that_failed_was_a_query():
    def fails(batch: Tensor) -> np.ndarray:
        raise UserError("no answer")

    querier = Querier(Source(fails), Limits(batch=2, budget=3))
    with pytest.raises(UserError, match="no answer"):
        querier(images(3))
    assert querier.sent == 2, "the second batch was never sent"
    with pytest.raises(UserError, match="would be asked 2 images more after 2"):
        querier(images(2))


def test_answers_before_a_bad_one_are_kept():
    half = Half()

    def later_nan(batch: Tensor) -> np.ndarray:
        return half(batch) if len(half.requests) < 1 else np.full((len(batch), 2, 2), NAN)

    querier = Querier(Source(later_nan), Limits(batch=2))
    with pytest.raises(UserError, match="not finite"):
        querier(images(4))
    assert torch.equal(querier(images(4)[:2]), images(4)[:2, 0] / 2) and querier.sent == 4


def test_memory_is_bounded_and_the_oldest_answers_go_first():
    half = Half()
    querier = Querier(Source(half), Limits(remembered=3 * 16))  # three answers of 2 x 2 float32
    queries = images(5)
    torch.testing.assert_close(querier(queries), queries[:, 0] / 2, rtol=0, atol=0)
    querier(queries[2:])
    assert querier.sent == 5
    torch.testing.assert_close(querier(queries), queries[:, 0] / 2, rtol=0, atol=0)  # 2, 3, 4 known, and pushed out meanwhile
    assert querier.sent == 7
    nothing = Querier(Source(half), Limits(remembered=0))
    for sent in (1, 2):
        nothing(queries[:1])
        assert nothing.sent == sent


def test_the_memory_frees_what_it_forgets():
    """An answer of a large batch is kept apart from the others of its batch."""
    querier = Querier(Source(Half()), Limits(batch=64, remembered=5 * 16))
    for seed in range(3):
        querier(images(64, seed))
    kept = querier._remembered.values()
    assert sum(answer.untyped_storage().nbytes() for answer in kept) == 5 * 16


def test_a_source_may_take_fewer_images_at_a_time():
    half = Half()
    Querier(Source(half, batch=2), Limits(batch=4))(images(5))
    assert half.requests == [2, 2, 1]


def test_images_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"it is asked with images of shape \(1, 2, 2\); allowed: \(3, 2, 2\)"):
        Querier(Source(Half(), "it"), shape=(3, 2, 2))(images(1))


@pytest.mark.parametrize("field", ["batch", "timeout", "pixel_bytes", "file_bytes", "memory_bytes"])
def test_limits_are_checked(field):
    for value in (0, NAN, INF):
        with pytest.raises(ValidationError, match=field):
            Limits(**{field: value})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Limits(), field, 1)


# --- a torch network --------------------------------------------------------------------------------------------------


class First(nn.Module):
    """Logits: the first channel, times 4, minus 2."""

    def __init__(self):
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, batch: Tensor) -> Tensor:
        self.sizes.append(len(batch))
        return batch[:, :1] * 4 - 2


def test_a_network_is_asked_once_for_all_access_levels():
    model = First()
    predictor, queries = from_model(model, CPU, batch=3), images(5)
    for level, shows in LEVELS.items():
        torch.testing.assert_close(
            at_access(predictor, level)(queries), shows((queries[:, 0] * 4 - 2).sigmoid()), rtol=0, atol=0
        )
    assert model.sizes == [3, 2] and predictor.sent == 5


def test_the_numbers_of_a_network_are_its_own_to_the_last_digit():
    torch.manual_seed(0)
    model = make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=False, size=SHAPE[1]).eval()
    queries = images(5, shape=SHAPE)
    with torch.inference_mode():
        parts = [part.contiguous(memory_format=torch.channels_last) for part in queries.split(2)]
        expected = torch.cat([model(part)[:, 0].sigmoid() for part in parts])
    assert torch.equal(from_model(model, CPU, batch=2)(queries), expected)


def test_what_is_forgotten_is_asked_again():
    """A study goes through many images, and is done with some."""
    querier, images = from_model(First(), CPU), torch.rand(2, 1, 4, 4)
    first = querier(images)
    querier(images)
    assert querier.sent == 2
    querier.forget()
    assert torch.equal(querier(images), first) and querier.sent == 4


# --- a Python function ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer,
        lambda answer: answer.requires_grad_(),
        lambda answer: answer.double()[:, None],
        lambda answer: answer.numpy(),
        lambda answer: np.stack([1 - answer.numpy(), answer.numpy()], 1),
        lambda answer: answer.tolist(),
    ],
)
def test_a_function_may_answer_with_a_tensor_or_an_array(change):
    querier = from_function(lambda batch: change(batch[:, 0] / 2))
    torch.testing.assert_close(querier(images(5)), images(5)[:, 0] / 2, rtol=0, atol=1e-6)


def test_a_function_may_answer_in_bfloat16():
    expected = images(2)[:, 0].bfloat16().float()
    assert torch.equal(from_function(lambda batch: batch[:, 0].bfloat16())(images(2)), expected)


def test_a_function_says_what_its_numbers_are():
    answers = from_function(lambda batch: batch[:, 0] * 4 - 2, shows="logits")(images(2))
    torch.testing.assert_close(answers, (images(2)[:, 0] * 4 - 2).sigmoid())
    assert torch.equal(from_function(lambda batch: batch[:, 0] > 0.5, shows="labels")(images(2)), (images(2)[:, 0] > 0.5) * 1.0)


def test_a_function_stands_behind_memory_budget_and_checks():
    half = Half()
    querier = from_function(half, "the clinic's model", (1, 2, 2), limits=Limits(batch=2, budget=3))
    querier(images(3))
    querier(images(3).flip(0))
    assert half.requests == [2, 1] and querier.sent == 3
    with pytest.raises(UserError, match="the clinic's model would be asked 1 images more after 3"):
        querier(images(1, seed=1))
    with pytest.raises(UserError, match=r"the clinic's model is asked with images of shape \(3, 32, 32\)"):
        querier(images(1, shape=SHAPE))
    for answer in (None, "no", torch.zeros(3), torch.full((1, 2, 2), NAN), torch.ones(1, 2, 2, dtype=torch.uint8)):
        with pytest.raises(UserError, match="the clinic's model answers with"):
            from_function(lambda batch, answer=answer: answer, "the clinic's model")(images(1))


def test_a_function_may_change_the_images_that_it_is_given():
    queries = images(3)

    def predict(batch: Tensor) -> Tensor:
        return batch.sub_(0.5).abs_()[:, 0]

    assert torch.equal(from_function(predict)(queries), (images(3)[:, 0] - 0.5).abs()) and torch.equal(queries, images(3))


# --- what is opened ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    options = make("architecture", {"name": "unet", "weights": "random"}).options()
    model = make("architecture", options).build(3, pretrained=False, size=SHAPE[1]).train()
    model(images(8, shape=SHAPE))  # so that batch-norm has statistics of its own, and answers differ
    place = tmp_path_factory.mktemp("checkpoint") / "model"
    architecture.save(model, architecture.card_for(options, 3, SHAPE[1]), place)
    return place


def test_a_checkpoint_folder_answers_as_its_network(folder):
    model, _ = architecture.load(folder, CPU)
    queries = images(3, shape=SHAPE)
    connected = connect(folder, SHAPE, CPU, Limits(budget=3))
    assert torch.equal(connected(queries), from_model(model, CPU)(queries)) and connected.sent == 3
    with pytest.raises(UserError, match=f"{folder} would be asked 1 images more"):
        connected(images(1, seed=9, shape=SHAPE))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 48)])
def test_a_checkpoint_for_other_images_is_refused(folder, shape):
    with pytest.raises(UserError) as error:
        connect(folder, shape, CPU)
    assert str(shape) in str(error.value) and "allowed: 3 channels, height and width multiples of 32" in str(error.value)


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return type(self.trace).touch, (self.trace,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".PT", ".onnx", ".safetensors", ""])
def test_a_pickle_is_never_opened_under_any_name(tmp_path, suffix):
    file = tmp_path / f"suspect{suffix}"
    torch.save(Trap(tmp_path / "sprung"), file)
    with pytest.raises(UserError) as error:
        connect(file, SHAPE, CPU)
    assert str(file) in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "sprung").exists()
    with file.open("rb") as stream:  # by its name, torch may take it for safetensors
        torch.load(stream, weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap does not work"


@pytest.mark.parametrize(
    "suspect, words",
    [
        ("nowhere", ["there is no suspect at nowhere", "checkpoint folder", ".onnx", "https://"]),
        ("nowhere.onnx", ["there is no suspect at nowhere.onnx"]),
        ("nowhere.pt", ["pickle"]),
        ("ftp://example.org/model", ["ftp://example.org/model", "http://HOST"]),
        ("file:///etc/passwd", ["http://HOST"]),
        ("http://", ["http://HOST"]),
        ("http://user:secret@example.org:port/x", ["http://HOST"]),
        ("http://[::1/x", ["http://HOST"]),
    ],
)
def test_what_is_no_suspect(suspect, words):
    with pytest.raises(UserError) as error:
        connect(suspect, SHAPE, CPU)
    assert all(word in str(error.value) for word in words) and "secret" not in str(error.value)


def test_a_suspect_is_described_without_secrets_and_paths(folder, tmp_path):
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    description = {"name": "model", "kind": "checkpoint", "sha256": digest}
    assert describe_suspect(folder) == describe_suspect(f"{folder}/../model/") == description
    (tmp_path / "theirs.ONNX").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert describe_suspect(tmp_path / "theirs.ONNX") == {"name": "theirs.ONNX", "kind": "onnx", "sha256": digest}
    address = "https://user:password@suspect.example:8443/v1/predict?token=secret"
    assert describe_suspect(address) == {"name": "suspect.example/v1/predict", "kind": "http"}


def test_what_was_opened_is_what_is_described(folder):
    source = connect(folder, SHAPE, CPU).source
    description = describe_suspect(folder)
    assert (source.kind, source.sha256) == (description["kind"], description["sha256"])


@pytest.mark.parametrize("suspect", ["nowhere", "nowhere.onnx", "nowhere.pt", "ftp://example.org/model", "http://[::1/x"])
def test_what_is_no_suspect_is_not_described(suspect):
    with pytest.raises(UserError, match="allowed: "):
        describe_suspect(suspect)


def test_a_folder_without_weights_is_not_described(tmp_path):
    with pytest.raises(UserError, match="cannot read .*model.safetensors: No such file"):
        describe_suspect(tmp_path)


def test_opening_a_folder_needs_no_library_of_other_kinds_of_suspect():
    """Each takes a second to import; a study opens nothing but folders of its own."""
    program = "import sys, stealthmark.suspects.connect as _; print(*{'requests', 'onnxruntime', 'nnunetv2'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_an_empty_folder_is_no_suspect(tmp_path):
    with pytest.raises(UserError, match="is not a checkpoint: card.json is absent"):
        connect(tmp_path, SHAPE, CPU)


def test_what_is_shown_must_be_known(folder):
    with pytest.raises(UserError, match="'percent'; allowed: probabilities, logits, labels"):
        connect(folder, SHAPE, CPU, shows="percent")


# --- one model, three ways --------------------------------------------------------------------------------------------


def test_folder_file_and_service_give_the_same_answers(folder, tmp_path, monkeypatch):
    """Exported and served by the commands, the service in a process of its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    queries, file = images(5, shape=SHAPE), tmp_path / "model.onnx"
    assert cli.main(["export", "--model", str(folder), "--out", str(file)]) == 0
    content = file.read_bytes()
    assert str(Path(cli.__file__).parent).encode() not in content and b".py" not in content, "it names files of its maker"
    assert list(tmp_path.iterdir()) == [file], "something else was left"
    command = [sys.executable, "-m", "stealthmark", "serve", "--model", folder, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group()
            suspects = [connect(where, SHAPE, CPU, Limits(batch=2)) for where in (folder, file, url)]
            first, *others = [suspect(queries) for suspect in suspects]
        finally:
            process.terminate()
    assert first.std() > 1e-3, "a constant would show nothing"
    for answers in others:
        torch.testing.assert_close(answers, first, rtol=0, atol=1e-5)
    assert [suspect.sent for suspect in suspects] == [5, 5, 5]
