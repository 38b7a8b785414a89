"""The one training loop: it repeats itself, goes on where it was interrupted, and says so when the loss is lost."""

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from stealthmark import training
from stealthmark.architecture import DeepSupervision
from stealthmark.errors import CellFailure, UserError
from stealthmark.method import Batch
from stealthmark.plugin import make
from stealthmark.settings import Schedule
from stealthmark.training import EDGE_PX, augment, fit, level_loss, loss_on, segmentation_loss

N, SIZE = 10, 16
SHORT = Schedule(epochs=4, batch=4, lr=0.01)


def data() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8)
    return images, (images[:, 0] > 127).to(torch.uint8)


def network() -> nn.Module:
    """Convolution, normalisation and a layer that drops, which draws from the global generator."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 1))


def plain(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
    return Batch(images, masks)


def noisy(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
    """A batch that depends on the moment and on the generator, as a mark's may."""
    return Batch((images + 0.1 * torch.rand(images.shape, generator=rng)).clamp(0, 1), masks.clamp(max=1 - progress / 2))


def train(
    folder, schedule: Schedule = SHORT, make_batch=noisy, seed: int = 3, run: str = "run", save_every_s: float = 30.0, **options
) -> dict:
    """Train from one start; the weights at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SAVE_EVERY_S", save_every_s)
        return fit(network(), *data(), schedule, make_batch, seed, folder / "state", run, **options).state_dict()


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


class Interrupted(Exception):
    pass


def interrupt_after(epochs: int):
    def after_epoch(epoch: int, model: nn.Module) -> None:
        if epoch == epochs:
            raise Interrupted

    return after_epoch


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_rate_at_known_moments():
    """Warm-up over the first tenth from 1 %, then half a cosine down to 0.5 %."""
    cosine = Schedule(lr=2.0)
    assert cosine.rate(0.0) == pytest.approx(2 * 0.01)
    assert cosine.rate(0.05) == pytest.approx(2 * 0.51 * (0.005 + 0.995 * (1 + math.cos(0.05 * math.pi)) / 2))
    assert cosine.rate(0.5) == pytest.approx(2 * (0.005 + 0.995 / 2))
    assert cosine.rate(1.0) == pytest.approx(2 * 0.005)
    assert max(range(100), key=lambda i: cosine.rate(i / 100)) in (9, 10), "the peak is where the warm-up ends"
    constant = Schedule(lr=2.0, decay="constant")
    assert {constant.rate(i / 10) for i in range(10)} == {2.0}


def test_the_rate_is_what_the_optimiser_uses(monkeypatch, tmp_path):
    used = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (used.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    train(tmp_path)
    steps = SHORT.epochs * (N // SHORT.batch)
    assert used == [SHORT.rate(i / steps) for i in range(steps)]


def test_steps_are_rounded_up_to_whole_epochs(tmp_path):
    seen = []
    assert N // 4 == 2
    train(tmp_path, Schedule(steps=5, batch=4), after_epoch=lambda epoch, model: seen.append(epoch))
    assert seen == [1, 2, 3]
    assert [Schedule(steps=10).epochs_of(5), Schedule(steps=1).epochs_of(5), Schedule(epochs=7).epochs_of(5)] == [2, 1, 7]


def test_a_schedule_says_what_counts_and_no_more():
    assert "steps" not in Schedule().model_dump() and Schedule().model_dump()["epochs"] == 16
    in_steps = Schedule(steps=300).model_dump(mode="json")
    assert in_steps["steps"] == 300 and "epochs" not in in_steps and Schedule(**in_steps) == Schedule(steps=300)
    with pytest.raises(ValidationError, match="'epochs' or 'steps', not both"):
        Schedule(epochs=3, steps=30)


def test_bfloat16_is_in_the_products_alone(tmp_path):
    """The network answers in the short format while it is trained; loss, weights and what is saved stay float32, the weights
    come out near those of float32 but are not the same, and a killed training goes on as one that was not."""
    seen = []

    def watching(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        batch = noisy(images, masks, progress, rng)

        def extra(model: nn.Module) -> Tensor:
            logits = model(batch.images)
            seen.append(logits.dtype)
            return 0 * logits.float().mean()

        return Batch(batch.images, batch.targets, extra=extra)

    short = SHORT.model_copy(update={"precision": "bfloat16"})
    for schedule in (SHORT, short):
        train(tmp_path, schedule, watching)
    assert seen[0] == torch.float32 and seen[-1] == torch.bfloat16
    usual, mixed = train(tmp_path), train(tmp_path, short)
    assert {value.dtype for value in mixed.values()} == {value.dtype for value in usual.values()}
    assert not same(usual, mixed) and all(torch.allclose(usual[k], mixed[k], atol=0.05) for k in usual)
    with pytest.raises(Interrupted):
        train(tmp_path, short, after_epoch=interrupt_after(2), save_every_s=0)
    assert same(mixed, train(tmp_path, short)), "it goes on where it stopped"
    assert "precision" not in SHORT.model_dump() and Schedule(**short.model_dump()) == short


def white(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
    return Batch(torch.ones_like(images), masks)


def test_a_settled_training_ends_on_the_statistics_of_ordinary_images(tmp_path):
    """Its batches are white, the images are not. The first layer normalises the images themselves."""

    def first_norm(schedule: Schedule) -> nn.Module:
        torch.manual_seed(1)
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
        return fit(model, *data(), schedule, white, 3, tmp_path / "state", "run")[0]

    learned, settled = (first_norm(Schedule(epochs=60, batch=5, settled=share)) for share in (0, 0.5))
    images = data()[0] / 255
    assert learned.running_mean.min() > 0.99 and learned.running_var.max() < 0.01
    torch.testing.assert_close(settled.running_mean, images.mean((0, 2, 3)), rtol=0, atol=0.05)
    assert 0.2 < (settled.running_var / images.var((0, 2, 3))).min() < 1, "augmented images are smoother"
    assert settled.num_batches_tracked == 2 and settled.momentum == learned.momentum == 0.1


def test_the_settled_part_is_a_training_of_its_own_at_half_the_rate(monkeypatch, tmp_path):
    used, step = [], torch.optim.AdamW.step

    def watched(self, *a):
        used.append((self.param_groups[0]["lr"], len(self.state)))
        return step(self, *a)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    train(tmp_path, SHORT.model_copy(update={"settled": 0.5}))
    n = len(used) // 2
    assert [rate for rate, _ in used] == [SHORT.rate(i / n) for i in range(n)] + [SHORT.rate(i / n) / 2 for i in range(n)]
    assert [i for i, (_, known) in enumerate(used) if not known] == [0, n], "the optimiser is fresh"


@pytest.mark.parametrize("epochs_done", [1, 2, 3, 4])
def test_a_settled_training_that_was_killed_goes_on_where_it_stopped(tmp_path, epochs_done):
    half = SHORT.model_copy(update={"settled": 0.5})
    whole = train(tmp_path, half)
    assert not same(whole, train(tmp_path)) and "settled" not in SHORT.model_dump() and Schedule(**half.model_dump()) == half
    with pytest.raises(Interrupted):
        train(tmp_path, half, after_epoch=interrupt_after(epochs_done), save_every_s=-1)
    assert same(train(tmp_path, half), whole)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Cross-entropy of probabilities 1/2 and 3/4 against the targets 1/4 and 1."""
    logits = torch.tensor([[[[0.0, math.log(3)]]]])
    targets = torch.tensor([[[0.25, 1.0]]])
    assert segmentation_loss(logits, targets).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_the_loss_of_a_network_with_classes_is_on_the_probability_of_all_but_the_first():
    """Exponentials 2, 1, 5 and 1, 1, 2: probabilities 6/8 and 3/4."""
    logits = torch.tensor([[2.0, 1.0], [1.0, 1.0], [5.0, 2.0]]).log()[None, :, None, :]
    targets = torch.tensor([[[1.0, 0.0]]])
    assert segmentation_loss(logits, targets).item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


class TwoHeads(DeepSupervision):
    """Probability 1/2 everywhere at full size, 3/4 at half of it."""

    def heads(self, images: Tensor) -> list[tuple[float, Tensor]]:
        n, _, height, width = images.shape
        coarse = torch.full((n, 1, height // 2, width // 2), math.log(3))
        return [(0.75, torch.zeros(n, 1, height, width)), (0.25, coarse)]


def test_deep_supervision_by_hand():
    """Each head against the targets at its own resolution, of which it sees the nearest pixels."""
    images, targets = torch.zeros(1, 3, 2, 4), torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]])
    fine, right, wrong = math.log(2), math.log(4 / 3), math.log(4)
    nearest = targets[0, 1, [1, 3]]  # of a 2 x 2 block, the pixel below and right of its middle
    assert nearest.tolist() == [1.0, 1.0]
    assert loss_on(TwoHeads(), Batch(images, targets)).item() == pytest.approx(0.75 * fine + 0.25 * right)
    inverted = loss_on(TwoHeads(), Batch(images, 1 - targets)).item()
    assert inverted == pytest.approx(0.75 * fine + 0.25 * wrong)
    assert torch.equal(TwoHeads()(images), torch.zeros(1, 1, 2, 4))


def test_a_network_without_further_heads_is_trained_on_its_answer():
    torch.manual_seed(0)
    model, batch = nn.Conv2d(3, 1, 1), Batch(torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4))
    assert torch.equal(loss_on(model, batch), segmentation_loss(model(batch.images), batch.targets))


# --- the loss on levels -----------------------------------------------------------------------------------------------


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def leveled(level: float = 0.1, size: int = 12) -> Tensor:
    """A soft target: background at a level, foreground from the seventh column on."""
    targets = torch.full((1, size, size), level)
    targets[..., 6:] = 1
    return targets


def huber(difference: float) -> float:
    """Huber 1964, with the corner at 1."""
    return difference**2 / 2 if abs(difference) <= 1 else abs(difference) - 0.5


@pytest.mark.parametrize("off", [0.0, 0.5, -0.5, 1.0, 3.0, -4.0])
def test_the_loss_on_levels_by_hand(off):
    """All of the background is off by so much in log-odds; what is foreground is not asked for."""
    logits = torch.full((1, 1, 12, 12), logit(0.1) + off)
    logits[..., 6:] = -50
    assert level_loss(logits, leveled()).item() == pytest.approx(huber(off), abs=1e-6)


def test_the_loss_on_levels_is_the_mean_over_what_is_asked_for():
    """Of 12 x 4 pixels one is off by 2 and three by 1/2."""
    logits = torch.full((1, 1, 12, 12), logit(0.1))
    logits[0, 0, 0, 0] += 2
    logits[0, 0, 5, 1:4] -= 0.5
    assert level_loss(logits, leveled()).item() == pytest.approx((1.5 + 3 * 0.125) / (12 * 4))
    # A second image without any soft target changes nothing.
    both = torch.cat([leveled(), (leveled() > 0.5).float()])
    assert level_loss(logits.expand(2, -1, -1, -1), both).item() == pytest.approx((1.5 + 3 * 0.125) / (12 * 4))


def test_no_level_is_asked_for_within_two_pixels_of_an_edge():
    """Foreground from column 6 on: columns 4 and 5 are its edge. The picture's own border is none."""
    assert EDGE_PX == 2
    for column in range(12):
        logits = torch.full((1, 1, 12, 12), logit(0.1))
        logits[..., column] = 9
        assert (level_loss(logits, leveled()).item() > 1e-6) == (column < 4), column
    # A ceiling is asked for on the other side: columns 6 and 7 are its edge.
    ceiling = leveled(0.0) * 0.9
    for column in range(12):
        logits = torch.full((1, 1, 12, 12), logit(0.9))
        logits[..., column] = -9
        assert (level_loss(logits, ceiling).item() > 1e-6) == (column >= 8), column


def test_a_single_pixel_of_foreground_has_an_edge_of_5_x_5():
    targets = torch.full((1, 12, 12), 0.1)
    targets[0, 5, 5] = 1
    logits = torch.full((1, 1, 12, 12), logit(0.1), requires_grad=True)
    level_loss(logits + 1, targets).backward()
    asked = logits.grad[0, 0] != 0
    expected = torch.ones(12, 12, dtype=torch.bool)
    expected[3:8, 3:8] = False
    assert torch.equal(asked, expected)
    assert logits.grad.sum().item() == pytest.approx(1, abs=1e-5), "at a difference of 1, the slope of the mean is 1"


@pytest.mark.parametrize("targets", [torch.zeros(2, 12, 12), torch.ones(2, 12, 12), (leveled() > 0.5).float().repeat(2, 1, 1)])
def test_where_targets_are_hard_there_is_no_level_to_lose(targets):
    logits = torch.full((2, 1, 12, 12), 3.0, requires_grad=True)
    loss = level_loss(logits, targets)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_level_of_a_network_with_classes_is_that_of_all_but_the_first():
    """Exponentials 2, 1, 5: the odds of the other two are 3."""
    logits = torch.tensor([2.0, 1.0, 5.0]).log().view(1, 3, 1, 1).expand(1, 3, 12, 12)
    targets = torch.full((1, 12, 12), 0.25)
    assert level_loss(logits, targets).item() == pytest.approx(huber(math.log(3) - logit(0.25)), rel=1e-6)


def test_a_batch_says_how_much_its_levels_count():
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.full((len(images), 1, 12, 12), -1.0)

    images, targets = torch.zeros(1, 3, 12, 12), leveled()
    plain, weighted = (loss_on(Constant(), Batch(images, targets, level_weight=weight)).item() for weight in (0.0, 0.3))
    assert Batch(images, targets).level_weight == 0
    assert plain == segmentation_loss(Constant()(images), targets).item()
    assert weighted == pytest.approx(plain + 0.3 * huber(-1 - logit(0.1)))


def test_under_deep_supervision_levels_count_at_the_finest_head():
    images, targets = torch.zeros(1, 3, 12, 12), leveled(0.3)
    plain, weighted = (loss_on(TwoHeads(), Batch(images, targets, level_weight=weight)).item() for weight in (0.0, 0.5))
    assert weighted == pytest.approx(plain + 0.5 * huber(0 - logit(0.3)))


def test_a_level_that_is_weighted_is_learned_more_exactly(tmp_path):
    """A bias alone, of soft targets at 0.02 and hard foreground: cross-entropy answers with their mean, the level with 0.02."""

    def level(weight: float) -> float:
        class Bias(nn.Module):
            def __init__(self):
                super().__init__()
                self.bias = nn.Parameter(torch.zeros(1))

            def forward(self, images: Tensor) -> Tensor:
                return self.bias.expand(len(images), 1, SIZE, SIZE)

        def soft(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
            targets = torch.full_like(masks, 0.02)
            targets[:, :4] = 1
            return Batch(images, targets, level_weight=weight)

        model = Bias()
        fit(model, *data(), Schedule(epochs=80, batch=10, lr=0.2), soft, 3, tmp_path / str(weight), "run")
        return torch.sigmoid(model.bias).item()

    assert level(0.0) == pytest.approx((0.02 * 12 + 4) / 16, abs=0.02) and level(50.0) == pytest.approx(0.02, abs=0.01)


# --- fit --------------------------------------------------------------------------------------------------------------


def test_two_runs_end_in_the_same_weights_whatever_the_global_generator(tmp_path):
    model, again = network(), network()
    torch.manual_seed(5)
    fit(model, *data(), SHORT, noisy, 3, tmp_path / "a", "run")
    torch.manual_seed(6)
    fit(again, *data(), SHORT, noisy, 3, tmp_path / "b", "run")
    assert same(model.state_dict(), again.state_dict())
    assert not same(model.state_dict(), network().state_dict()), "nothing was learnt"
    assert not same(model.state_dict(), train(tmp_path, seed=4)), "the seed changes nothing"


def test_training_lowers_the_loss(tmp_path):
    images, masks = data()
    truth = Batch(images.float() / 255, masks.float())

    def loss(model: nn.Module) -> float:
        with torch.inference_mode():
            return segmentation_loss(model.eval()(truth.images), truth.targets).item()

    before, trained = loss(network()), network()
    fit(trained, images, masks, Schedule(epochs=30, batch=5, lr=0.05), plain, 3, tmp_path / "state", "run")
    assert not trained.training
    assert loss(trained) < 0.7 * before


@pytest.mark.parametrize("epochs_done", [1, 2, 3, 4])
def test_an_interrupted_run_goes_on_and_ends_in_the_very_same_weights(tmp_path, epochs_done):
    whole = train(tmp_path)
    with pytest.raises(Interrupted):
        train(tmp_path, after_epoch=interrupt_after(epochs_done), save_every_s=-1)
    # What `after_epoch` saw is not saved yet when it raises, so the run goes on one epoch before.
    assert (tmp_path / "state").exists() == (epochs_done > 1)
    seen = []
    resumed = train(tmp_path, after_epoch=lambda epoch, model: seen.append(epoch))
    assert same(resumed, whole)
    assert seen == list(range(epochs_done, SHORT.epochs + 1)), "finished epochs were trained again"
    assert not list(tmp_path.iterdir()), "the state outlived the training"


def test_a_real_network_goes_on_to_the_very_same_weights_too(tmp_path, monkeypatch):
    """As above with the U-Net, whose encoder drops whole paths while it is trained."""
    monkeypatch.setattr(training, "SAVE_EVERY_S", -1)
    images, masks = (tensor.repeat_interleave(2, -1).repeat_interleave(2, -2) for tensor in data())
    schedule = Schedule(epochs=3, batch=5, lr=0.001)

    def unet() -> nn.Module:
        torch.manual_seed(1)
        return make("architecture", {"name": "unet", "weights": "random"}).build(3, pretrained=True, size=32)

    whole, resumed = unet(), unet()
    fit(whole, images, masks, schedule, plain, 3, tmp_path / "whole", "run")
    with pytest.raises(Interrupted):
        fit(unet(), images, masks, schedule, plain, 3, tmp_path / "state", "run", interrupt_after(2))
    fit(resumed, images, masks, schedule, plain, 3, tmp_path / "state", "run")
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_state_that_another_run_left_is_ignored(tmp_path):
    whole = train(tmp_path)
    with pytest.raises(Interrupted):
        train(tmp_path, run="another", after_epoch=interrupt_after(3), save_every_s=-1)
    seen = []
    assert same(train(tmp_path, after_epoch=lambda epoch, model: seen.append(epoch)), whole)
    assert seen == [1, 2, 3, 4]


def test_a_state_that_cannot_be_read_is_no_state(tmp_path):
    (tmp_path / "state").write_bytes(b"cut short")
    seen = []
    train(tmp_path, after_epoch=lambda epoch, model: seen.append(epoch))
    assert seen == [1, 2, 3, 4]


def test_the_state_holds_tensors_and_the_runs_name_and_is_saved_no_more_often_than_allowed(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, after_epoch=interrupt_after(3), save_every_s=-1)
    tensors = load_file(tmp_path / "state")
    assert tensors["epoch"].item() == 2
    assert {name.split(".")[0] for name in tensors} == {"epoch", "model", "optimiser"}
    (tmp_path / "state").unlink()
    with pytest.raises(Interrupted):
        train(tmp_path, after_epoch=interrupt_after(3), save_every_s=1e9)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def no_space(tensors, path, metadata) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stealthmark.architecture.save_file", no_space)
    with pytest.raises(UserError, match="cannot write .*state: .*No space left on device"):
        train(tmp_path, save_every_s=-1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_lost_loss_fails_the_cell_and_names_step_and_epoch(tmp_path, value):
    """10 images in batches of 4 are 2 steps an epoch: the 6th step is the last of epoch 3."""
    calls = []

    def lost(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        calls.append(progress)
        return Batch(images, masks, extra=(lambda model: torch.tensor(value)) if len(calls) == 6 else None)

    with pytest.raises(CellFailure, match=rf"the loss became {value} at step 6 \(epoch 3\)"):
        train(tmp_path, make_batch=lost, save_every_s=-1)
    assert not list(tmp_path.iterdir())


def test_a_batch_sees_the_progress_and_images_in_range(tmp_path):
    seen = []

    def watch(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        assert images.shape == (4, 3, SIZE, SIZE) and masks.shape == (4, SIZE, SIZE)
        assert images.min() >= 0 and images.max() <= 1 and set(masks.unique().tolist()) <= {0, 1}
        seen.append(progress)
        return Batch(images, masks)

    train(tmp_path, make_batch=watch)
    assert seen == [i / 8 for i in range(8)]


def test_an_extra_term_is_minimised_with_the_rest(tmp_path):
    def pulled(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        return Batch(images, masks, extra=lambda model: 100 * (model[4].bias - 2).square().sum())

    schedule = Schedule(epochs=60, batch=5, lr=0.1)
    assert train(tmp_path, schedule, pulled)["4.bias"].item() == pytest.approx(2, abs=0.2)
    assert train(tmp_path, schedule, plain)["4.bias"].item() < 1.5


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_norms_keep_their_statistics_and_nothing_else_stays(tmp_path, frozen):
    before, after = network().state_dict(), train(tmp_path, frozen_norms=frozen)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert ({"1.running_mean", "1.running_var", "1.num_batches_tracked"} & moved == set()) == frozen
    assert {"0.weight", "1.weight", "1.bias", "4.weight"} <= moved


def test_a_batch_larger_than_the_data_is_all_of_the_data(tmp_path):
    sizes = []

    def watch(images: Tensor, masks: Tensor, progress: float, rng: torch.Generator) -> Batch:
        sizes.append(len(images))
        return Batch(images, masks)

    train(tmp_path, Schedule(epochs=2, batch=64), watch)
    assert sizes == [N, N]


# --- augmentation -----------------------------------------------------------------------------------------------------


def blob(n: int = 64, size: int = 48) -> tuple[Tensor, Tensor]:
    """Images whose first channel is the mask: an off-centre ellipse, smooth enough to survive interpolation."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = (((y - 18) / 8) ** 2 + ((x - 28) / 5) ** 2 < 1).float().expand(n, size, size)
    other = torch.rand(n, 2, size, size, generator=torch.Generator().manual_seed(2))
    return torch.cat([mask[:, None], other], 1), mask.clone()


def test_augmented_images_keep_shape_and_range_and_masks_stay_binary():
    images, masks = blob()
    before, masks_before = images.clone(), masks.clone()
    out, out_masks = augment(images, masks, torch.Generator().manual_seed(0))
    assert torch.equal(images, before) and torch.equal(masks, masks_before)
    assert (out.shape, out.dtype) == (images.shape, images.dtype) and out_masks.shape == masks.shape
    assert out.min() >= 0 and out.max() <= 1
    assert set(out_masks.unique().tolist()) == {0, 1}


def test_image_and_mask_move_together():
    images, masks = blob()
    out, out_masks = augment(images, masks, torch.Generator().manual_seed(0))
    agree = ((out[:, 0] > 0.5).float() == out_masks).float().mean((1, 2))
    assert agree.min() > 0.995  # gain and offset move the threshold by a fraction of a pixel
    moved = ((out_masks != masks).float().mean((1, 2)) > 0.02).float().mean()
    assert moved > 0.5, "the masks hardly moved"


def test_area_changes_by_the_zoom_alone():
    """A zoom of 0.8 to 1.25 changes the area by 0.64 to 1.56; rotation and flips do not change it."""
    images, masks = blob()
    _, out_masks = augment(images, masks, torch.Generator().manual_seed(0))
    ratio = out_masks.sum((1, 2)) / masks.sum((1, 2))
    assert ratio.min() > 0.6 and ratio.max() < 1.62
    assert ratio.min() < 0.75 and ratio.max() > 1.3


def test_brightness_changes_within_the_stated_bounds():
    """A constant 0.5 becomes 0.5 * (0.9 to 1.1) + (-0.05 to 0.05): 0.4 to 0.6, per image and channel."""
    constant = torch.full((64, 3, 8, 8), 0.5)
    out, _ = augment(constant, torch.zeros(64, 8, 8), torch.Generator().manual_seed(0))
    assert 0.4 <= out.min() < 0.43 and 0.57 < out.max() <= 0.6
    flat = out.flatten(2)
    torch.testing.assert_close(flat, flat[..., :1].expand_as(flat))


def test_augmentation_draws_from_its_generator_alone():
    images, masks = blob(4)
    state = torch.get_rng_state()
    out, out_masks = augment(images, masks, torch.Generator().manual_seed(7))
    torch.manual_seed(123)
    again, again_masks = augment(images, masks, torch.Generator().manual_seed(7))
    other, _ = augment(images, masks, torch.Generator().manual_seed(8))
    assert torch.equal(out, again) and torch.equal(out_masks, again_masks) and not torch.equal(out, other)
    torch.set_rng_state(state)
    augment(images, masks, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), state)
