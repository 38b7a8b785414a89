"""Claims: the situations in which somebody holds a key against a model that was marked with another, or with none.

Each is a way to query; what it yields is ranked among the null models, queried in the same way. `evidence.md` of the
protocol: independent trigger, wrong key, natural pseudo-triggers, and the malicious claimant, who forges a key on a
finished model by search or by adversarial queries.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from stealthmark.evidence import claimed_threshold
from stealthmark.method import Answers, Key, MethodContract, Predictor
from stealthmark.seeds import derive, torch_rng
from stealthmark.triggers import Trigger, natural

#: The claims by name. In rows the name is the situation.
NAMES = ("wrong-trigger", "wrong-key", "natural", "search", "adversarial")


class Plan(BaseModel):
    """How hard a malicious claimant tries: `keys` tried in the search; a universal perturbation of at most `epsilon` a
    pixel, found in `steps` steps on a surrogate. `images`: how many of the owner's images a claim is queried with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keys: int = Field(default=20, ge=1)
    epsilon: float = Field(default=8 / 255, gt=0, le=1)
    steps: int = Field(default=100, ge=1)
    images: int = Field(default=100, ge=1)


@dataclass(frozen=True)
class Claim:
    """A key, and what queries carry instead of its trigger (None: the key's own). A `malicious` claimant fits the detector
    on the suspect itself; all others use the key's frozen one."""

    name: str
    key: Key
    trigger: Callable[[Tensor], Tensor] | None = None
    malicious: bool = False

    def ask(self, method: MethodContract, predictor: Predictor, images: Tensor) -> Answers:
        """The answers to images float (N, C, H, W), see `MethodContract.query`."""
        return method.query(predictor, self.key, images, self.trigger)

    def threshold(self, answers: Answers, level: str) -> float:
        """Above which score a query is called marked."""
        if self.malicious:
            return claimed_threshold(answers.triggered.double().numpy(), answers.benign.double().numpy())
        return self.key.detectors[level].threshold


def every(
    method: MethodContract,
    key: Key,
    suspect: Predictor,
    surrogate: nn.Module,
    images: Tensor,
    masks: Tensor,
    plan: Plan,
    seed: int,
) -> list[Claim]:
    """All claims of `NAMES` against one suspect. images float (N, C, H, W) and masks float (N, H, W) of 0 and 1 are the
    claimant's own, as is the `surrogate`, a network trained on them; the suspect is seen through its answers alone."""
    keys = [
        method.make_key(derive(seed, "key", i), key.shape).model_copy(update={"detectors": key.detectors})
        for i in range(plan.keys)
    ]
    found = max(keys, key=lambda candidate: float(method.query(suspect, candidate, images[:32]).triggered.double().mean()))
    change = universal(surrogate, images, method.target(masks, keys[0]), plan, seed)
    return [
        Claim("wrong-trigger", key, unrelated(method)),
        Claim("wrong-key", keys[0]),
        Claim("natural", key, lambda batch: natural(batch, derive(seed, "natural"))),
        Claim("search", found, malicious=True),
        Claim("adversarial", keys[0], lambda batch: (batch + change).clamp(0, 1), malicious=True),
    ]


def unrelated(method: MethodContract) -> Trigger:
    """A trigger that is not the method's: a yellow patch at the bottom right; for one that has it, a black border."""
    return Trigger(kind="border" if getattr(method, "kind", None) == "patch" else "patch")


def universal(model: nn.Module, images: Tensor, targets: Tensor, plan: Plan, seed: int) -> Tensor:
    """One change of all images that makes `model` answer with `targets`: float (C, H, W) in [-epsilon, epsilon].

    A universal adversarial perturbation by signed gradient steps (Shafahi et al., AAAI 2020). images float (N, C, H, W) in
    [0, 1], targets float (N, H, W) in [0, 1].
    """
    device = next(model.parameters()).device
    change = torch.zeros(images.shape[1:], device=device, requires_grad=True)
    rng = torch_rng(seed, "universal")
    for _ in range(plan.steps):
        chosen = torch.randint(len(images), (16,), generator=rng)
        logits = model((images[chosen].to(device) + change).clamp(0, 1))[:, 0]
        (gradient,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, targets[chosen].to(device)), change)
        with torch.no_grad():
            change -= 2.5 * plan.epsilon / plan.steps * gradient.sign()
            change.clamp_(-plan.epsilon, plan.epsilon)
    return change.detach().cpu()
