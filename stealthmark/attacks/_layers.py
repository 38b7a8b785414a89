"""The layers of a network whose weights an attack changes."""

import torch
from torch import Tensor, nn

from stealthmark.architecture import foreground

#: Layers with weights: all but normalisations and embeddings.
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights (no biases) of all convolutions and linear layers, each once, as the network lists them."""
    return list(dict.fromkeys(layer.weight for layer in model.modules() if isinstance(layer, WEIGHTED)))


def last_layer(model: nn.Module, images: Tensor) -> nn.Module:
    """The convolution or linear layer that comes last on the way to the answer; images float (B, C, H, W) in [0, 1].

    In the order in which layers answer, not in which the network lists them. Layers that cannot be trained, or that have no
    part in the answer, as the coarser heads of deep supervision, do not count. Leaves the network in eval mode.
    """
    answered: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: answered.append(layer))
        for layer in model.modules()
        if isinstance(layer, WEIGHTED) and layer.weight.requires_grad
    ]
    answer = foreground(model.eval(), images)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(answer.sum(), [layer.weight for layer in answered], allow_unused=True)
    return [layer for layer, gradient in zip(answered, gradients, strict=True) if gradient is not None][-1]
