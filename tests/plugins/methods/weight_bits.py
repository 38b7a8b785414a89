"""A white-box mark of a page: bits of the key in keyed sums of the weights (the idea of Uchida et al., ICMR 2017). For the
tests."""

import torch
import torch.nn.functional as F
from pydantic import Field

from stealthmark.method import Answers, Batch, WhiteBoxMark
from stealthmark.seeds import torch_rng


class Method(WhiteBoxMark):
    """`bits` of them, in the first kernels of the network."""

    citation = "Uchida et al., Embedding watermarks into deep neural networks, ICMR 2017"
    bits: int = Field(default=16, ge=1)

    def sums(self, model, seed):
        """The keyed sums of the weights, float (bits,), and their bits as signs."""
        weights = next(weights for weights in model.parameters() if weights.ndim > 1).flatten()
        rng = torch_rng(seed, "bits")
        matrix = torch.randn(self.bits, weights.numel(), generator=rng)
        signs = torch.randint(2, (self.bits,), generator=rng) * 2.0 - 1
        return matrix.to(weights) @ weights, signs.to(weights)

    def mark_batch(self, images, masks, key, progress, rng):
        def extra(model):
            sums, signs = self.sums(model, key.seed)
            return 10 * F.softplus(-sums * signs).mean()

        return Batch(images, masks, extra)

    @torch.no_grad()
    def inspect(self, model, key):
        scores = [sums * signs for sums, signs in (self.sums(model, seed) for seed in (key.seed, key.seed + 1))]
        return Answers(*(score.cpu() for score in scores))
