"""A mark inside nnU-Net's own training, and nnU-Net's results folders as suspects."""

import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stealthmark.architectures.nnunet import plan
from stealthmark.errors import UserError
from stealthmark.method import Batch, Fingerprint
from stealthmark.nnunet import trainer as training
from stealthmark.plugin import make
from stealthmark.suspects.connect import connect, describe_suspect
from stealthmark.suspects.nnunet import source
from stealthmark.suspects.querier import Limits, Querier

CPU, SIZE = torch.device("cpu"), 32
SHAPE = (1, SIZE, SIZE)
METHOD = make("method", {"name": "stealthmark", "trigger": "text", "curriculum": "none"})
KEY = METHOD.make_key(271828182845, SHAPE)


def standardised(images: Tensor) -> Tensor:
    return (images - images.mean((-2, -1), keepdim=True)) / images.std((-2, -1), correction=0, keepdim=True)


def unit(images: Tensor) -> Tensor:
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    return (images - low) / (high - low)


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    """Images as nnU-Net has normalised them, float (n, 1, SIZE, SIZE), and labels float (n, 1, SIZE, SIZE) of 0 and 1."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.zeros(n, 1, SIZE, SIZE)
    labels[:, :, 8:20, 10:24] = 1
    return standardised(torch.rand(n, 1, SIZE, SIZE, generator=rng)), labels


# --- the trainer's parts ----------------------------------------------------------------------------------------------


def test_soft_cross_entropy_by_hand():
    """Two classes: softmax (1/4, 3/4) against (1 - s, s). Three: foreground goes to the label's class, or to all alike."""
    two = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1)
    value = training.soft_cross_entropy(two, torch.ones(1, 1, 1, 1), torch.full((1, 1, 1), 0.1))
    assert value.item() == pytest.approx(-0.9 * math.log(1 / 4) - 0.1 * math.log(3 / 4))
    three = torch.tensor([0.0, math.log(2), math.log(5)]).view(1, 3, 1, 1)  # 1/8, 2/8, 5/8
    for label, kinds in ((2, (0, 1)), (1, (1, 0)), (0, (0.5, 0.5))):
        value = training.soft_cross_entropy(three, torch.full((1, 1, 1, 1), label), torch.full((1, 1, 1), 0.2)).item()
        shared = kinds[0] * math.log(2 / 8) + kinds[1] * math.log(5 / 8)
        assert value == pytest.approx(-0.8 * math.log(1 / 8) - 0.2 * shared), label


def test_marked_loss_by_hand():
    """The stock loss sees the unchanged images alone, and counts in proportion to them."""
    logits, labels, soft = torch.zeros(4, 2, 2, 2), torch.ones(4, 1, 2, 2), torch.full((4, 2, 2), 0.9)
    seen = []

    def stock(outputs, targets):
        seen.append((outputs[0], len(targets[0])) if isinstance(outputs, list) else (outputs, len(targets)))
        return torch.tensor(10.0)

    def loss(changed: list[bool]) -> float:
        return training.marked_loss(stock, soft, torch.tensor(changed), logits, labels).item()

    assert loss([False] * 4) == 10 and seen[-1][1] == 4
    assert loss([True, False, False, False]) == pytest.approx(0.75 * 10 + 0.25 * math.log(2)) and seen[-1][1] == 3
    assert loss([True] * 4) == pytest.approx(math.log(2)) and len(seen) == 2, (
        "stock losses of no image at all are not asked for"
    )


def test_marked_loss_weighs_its_heads_as_nnunet_does():
    """Three heads with losses log 2, log 4, and one that would be infinite and has no weight: 2/3 and 1/3 of the first two."""
    heads = [torch.zeros(1, 2, 4, 4), torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)]
    heads.append(torch.tensor([math.inf, 0.0]).view(1, 2, 1, 1))
    labels = [torch.ones(1, 1, side, side) for side in (4, 2, 1)]
    loss = training.marked_loss(None, torch.ones(1, 4, 4), torch.tensor([True]), heads, labels)
    assert loss.item() == pytest.approx(2 / 3 * math.log(2) + 1 / 3 * math.log(4))


def test_the_trigger_is_set_on_images_stretched_to_0_and_1_and_normalised_as_a_query_will_be():
    images, labels = batch()
    marked = training.marker(KEY, standardised=True)(images, labels[:, 0], 0.9, 7)
    triggered = METHOD.trigger(unit(images), KEY)
    torch.testing.assert_close(marked.images[:2], standardised(triggered[:2]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(marked.targets[:2], METHOD.target(labels[:2, 0], KEY))
    torch.testing.assert_close(marked.images[3:], images[3:], rtol=1e-4, atol=1e-4)
    back = training.marker(KEY, standardised=False)(images, labels[:, 0], 0.9, 7).images
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(back[:2], (triggered * (high - low) + low)[:2], rtol=1e-4, atol=1e-4)
    again = training.marker(KEY, standardised=True)(images, labels[:, 0], 0.9, 7)
    assert torch.equal(again.images, marked.images)


class Tiny(nn.Module):
    """Two heads of one convolution each, under nnU-Net's deep supervision."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 2, stride=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.fine(images), self.coarse(images)]


def a_trainer(folder: Path):
    """nnU-Net's trainer as it is in the middle of a training, without the files that it would be made from."""
    torch.manual_seed(0)
    one = training.nnUNetTrainerStealthMark.__new__(training.nnUNetTrainerStealthMark)
    one.device, one.network, one.grad_scaler, one.is_ddp, one.local_rank = CPU, Tiny(), None, False, 0
    one.optimizer = torch.optim.SGD(one.network.parameters(), 0.1)
    one.loss = lambda outputs, targets: F.cross_entropy(outputs[0], targets[0][:, 0].long())
    one.current_epoch, one.iteration, one.num_epochs, one.num_iterations_per_epoch = 1, 3, 2, 10
    one.output_folder = str(folder)
    one.mark = training.marker(KEY, standardised=True)
    return one


def test_nnunets_own_step_trains_on_the_marked_batch(tmp_path):
    one, (images, labels) = a_trainer(tmp_path), batch()
    loss_before, weights = one.loss, one.network.fine.weight.detach().clone()
    marked = one.mark(images, labels[:, 0], 13 / 20, 13)
    with torch.no_grad():
        fine = one.network(marked.images)[0]
        changed = (marked.targets != labels[:, 0]).flatten(1).any(1)
        plain = F.cross_entropy(fine[~changed], labels[~changed, 0].long())
        soft = training.soft_cross_entropy(fine[changed], labels[changed], marked.targets[changed])
        share = changed.float().mean()
    result = one.train_step({"data": images, "target": [labels, labels[:, :, ::2, ::2]]})
    assert changed[:2].all() and not changed[3]
    assert result["loss"] == pytest.approx(((1 - share) * plain + share * soft).item(), rel=1e-5)
    assert one.loss is loss_before and one.iteration == 4 and not torch.equal(one.network.fine.weight, weights)


def test_nothing_of_the_key_is_written_beside_the_model(tmp_path):
    """nnU-Net dumps its trainer's values into debug.json."""
    one = a_trainer(tmp_path)
    one.dataloader_train = one.dataloader_val = None
    one._save_debug_information()
    dumped = (tmp_path / "debug.json").read_text()
    assert "num_epochs" in dumped and str(KEY.seed) not in dumped and "stealthmark" not in dumped


def test_a_method_that_needs_more_than_images_and_targets_is_refused(monkeypatch):
    monkeypatch.setattr(
        type(METHOD), "mark_batch", lambda self, images, masks, *more: Batch(images, masks, extra=lambda model: None)
    )
    images, labels = batch()
    with pytest.raises(UserError, match="stealthmark needs more than images and targets"):
        training.marker(KEY, True)(images, labels[:, 0], 0.5, 1)


def test_a_method_that_does_not_train_is_refused(monkeypatch):
    monkeypatch.setattr(training, "make", lambda kind, options: Fingerprint())
    with pytest.raises(UserError, match="puts nothing into a model by training"):
        training.marker(KEY, True)


def test_nnunet_finds_the_trainer_by_its_name(monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(Path(training.__file__).parent))
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerStealthMark")
    assert trainer.__name__ == "nnUNetTrainerStealthMark"


# --- a model folder as a suspect --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """What nnU-Net leaves behind, with the network of its own plan and weights that nobody trained."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    folder = tmp_path_factory.mktemp("Dataset001") / "nnUNetTrainer__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    configuration = {**plan(1, SIZE), "batch_dice": True}
    plans = {
        "dataset_name": "Dataset001",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 128.0, "std": 50.0}},
        "configurations": {"2d": configuration},
    }
    recursive_fix_for_json_export(plans)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "cine"}, "labels": {"background": 0, "heart": 1}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    planned = configuration["architecture"]
    torch.manual_seed(0)
    network = get_network_from_plans(
        planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"], 1, 2, deep_supervision=True
    )
    stored = {
        "network_weights": network.state_dict(),
        "optimizer_state": {"momentum": 0.99},
        "logging": {"train_losses": [np.float64(0.5), np.float32(0.25)], "epoch": np.int64(3)},
        "_best_ema": np.float64(0.9),
        "init_args": {"configuration": "2d", "plans": plans, "device": CPU},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(stored, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def test_a_model_folder_answers_as_its_network_does(model_folder):
    """One patch, no mirroring: softmax of the network's logits on the image at mean 0 and deviation 1."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    images = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    answers = connect(model_folder, SHAPE, CPU)(images)
    planned = json.loads((model_folder / "plans.json").read_text())["configurations"]["2d"]["architecture"]
    network = get_network_from_plans(
        planned["network_class_name"], planned["arch_kwargs"], planned["_kw_requires_import"], 1, 2, deep_supervision=False
    )
    network.load_state_dict(torch.load(model_folder / "fold_0/checkpoint_final.pth", weights_only=False)["network_weights"])
    with torch.inference_mode():
        expected = network.eval()(standardised(images)).softmax(1)[:, 1]
    assert (answers.shape, answers.dtype) == ((2, SIZE, SIZE), torch.float32)
    # nnU-Net adds up patches in half precision, weighted by a Gaussian that is next to nothing in the corners.
    torch.testing.assert_close(answers, expected, rtol=0, atol=2e-2)
    torch.testing.assert_close(answers[:, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], rtol=0, atol=1e-3)
    assert answers.std() > 0.01


def test_a_model_folder_stands_behind_memory_budget_and_checks(model_folder, capsys):
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    suspect = connect(model_folder, SHAPE, CPU, Limits(budget=3))
    answers = suspect(images[:2])
    assert suspect.sent == 2 and capsys.readouterr().out == "", "a command's output is for its verdict"
    assert torch.equal(suspect(images[[1, 2, 0, 1]])[[2, 0]], answers) and suspect.sent == 3, "one by one, in any batch"
    with pytest.raises(UserError, match=f"{model_folder} would be asked 1 images more after 3"):
        suspect(images[:1] / 2)
    with pytest.raises(UserError, match=r"is asked with images of shape \(1, 16, 16\)"):
        suspect(images[..., :16, :16])
    with pytest.raises(UserError, match=r"does not take images of shape \(3, 32, 32\); allowed: 1 channels"):
        connect(model_folder, (3, SIZE, SIZE), CPU)


def test_answers_may_be_averaged_over_mirrored_images(model_folder):
    images = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(3))
    plain, mirrored = (Querier(source(model_folder, SHAPE, CPU, mirroring=mirroring))(images) for mirroring in (False, True))
    assert (plain - mirrored).abs().max() > 1e-3


def test_a_model_folder_is_described_by_its_checkpoint(model_folder):
    digest = hashlib.sha256((model_folder / "fold_0/checkpoint_final.pth").read_bytes()).hexdigest()
    description = {"name": "nnUNetTrainer__nnUNetPlans__2d", "kind": "nnunet", "sha256": digest}
    assert describe_suspect(model_folder) == description
    opened = connect(model_folder, SHAPE, CPU).source
    assert (opened.kind, opened.sha256) == ("nnunet", digest)


def copy_of(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / folder.name))


def test_a_pickle_that_would_run_something_is_not_opened(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)

    class Thief:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'stolen'}",)

    torch.save({"network_weights": {}, "init_args": Thief()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(UserError, match="is a pickle that holds more than tensors and numbers; it was not opened"):
        connect(folder, SHAPE, CPU)
    assert not (tmp_path / "stolen").exists()


def test_a_plan_may_not_name_classes_from_anywhere(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    for field, value in (("network_class_name", "os.system"), ("conv_op", "subprocess.Popen")):
        plans = json.loads((model_folder / "plans.json").read_text())
        place = plans["configurations"]["2d"]["architecture"]
        (place if field in place else place["arch_kwargs"])[field] = value
        (folder / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(UserError, match=f"names '{value}', which is neither nnU-Net's nor torch's"):
            connect(folder, SHAPE, CPU)


def test_a_folder_that_is_no_model_is_said_to_be_none(model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "dataset.json").unlink()
    with pytest.raises(UserError, match="is not an nnU-Net model folder: dataset.json is absent"):
        connect(folder, SHAPE, CPU)
    (folder / "plans.json").write_text("no plan")
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="plans.json is not JSON"):
        connect(folder, SHAPE, CPU)
    with pytest.raises(UserError, match="there is no checkpoint at .*fold_3"):
        source(model_folder, SHAPE, CPU, fold=3)
    folder = copy_of(model_folder, tmp_path / "other")
    torch.save({"init_args": {"configuration": "2d"}, "network_weights": {}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(UserError, match="are not one nnU-Net model"):
        connect(folder, SHAPE, CPU)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="checkpoint_final.pth"):
        connect(folder, SHAPE, CPU)
