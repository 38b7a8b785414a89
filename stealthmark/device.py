"""Where to compute: CPU and CUDA take the same path."""

import os

import torch

from stealthmark.errors import UserError


def choose(name: str, threads: int) -> torch.device:
    """The device `name` (`auto`: CUDA where there is one), set up so that a run on one machine repeats itself.

    Raises UserError when CUDA is asked for and absent.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling new memory with NaN, which that turns on too, costs a training step 5 % and serves debugging alone.
    torch.utils.deterministic.fill_uninitialized_memory = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device 'cuda' was asked for, but torch finds no CUDA device here")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")
