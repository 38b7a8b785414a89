"""A Python function of the owner's as a suspect: for a model of any other kind, or any other interface."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stealthmark.suspects.querier import Limits, Querier, Shows, Source


def from_function(
    predict: Callable[[Tensor], Tensor | np.ndarray],
    name: str = "the function",
    shape: tuple[int, int, int] | None = None,
    shows: Shows = "probabilities",
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Querier:
    """A function as a predictor: images float (B, C, H, W) in [0, 1], on the CPU -> a tensor on any device, or an array.

    What it returns may have the shapes and values that `querier.probabilities` allows of the kind `shows`. It may change the
    images that it is given: they are a copy. `name` begins the sentences about it. With `shape` (C, H, W), images of any
    other shape are refused.
    """

    def ask(images: Tensor) -> np.ndarray:
        answer = predict(images.clone())
        if not isinstance(answer, Tensor):
            return np.asarray(answer)
        answer = answer.detach().cpu()
        return (answer.float() if answer.dtype == torch.bfloat16 else answer).numpy()  # numpy has no bfloat16

    return Querier(Source(ask, name, "function", shows), limits, shape)
