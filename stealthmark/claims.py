"""Claims: the situations in which somebody holds a key against a model that was marked with another, or with none.

Each is a way to query; what it yields is ranked among the null models, queried in the same way. `evidence.md` of the
protocol: independent trigger, wrong key, natural pseudo-triggers, and the malicious claimant, who forges a key on a
finished model by search or by adversarial queries; and the one who climbs (`climb.climb`), judged by the owner's own threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stealthmark.architecture import foreground
from stealthmark.climb import climb
from stealthmark.detection import ask, claimed_threshold
from stealthmark.layout import CLAIMS
from stealthmark.method import Answers, BlackBoxMethod, EmbeddedMark, Key, Owner
from stealthmark.seeds import derive, secret, torch_rng
from stealthmark.settings import ClaimPlan
from stealthmark.suspects.checkpoint import from_model
from stealthmark.suspects.querier import Predictor
from stealthmark.triggers import Trigger, natural


@dataclass(frozen=True)
class Claim:
    """A key, and what queries carry instead of its trigger (None: the key's own). A `malicious` claimant fits the detector
    on the suspect itself; all others use the key's frozen one."""

    name: str
    key: Key
    trigger: Callable[[Tensor], Tensor] | None = None
    malicious: bool = False

    def ask(self, method: BlackBoxMethod, seen: dict[str, Predictor], images: Tensor) -> dict[str, Answers]:
        """The scores at every access level of `seen`, of queries with images float (N, C, H, W)."""
        return ask(method, self.key, seen, [images], self.trigger)

    def threshold(self, answers: Answers, level: str) -> float:
        """Above which score a query is called marked."""
        if self.malicious:
            return claimed_threshold(answers.triggered.double().numpy(), answers.benign.double().numpy())
        return self.key.detectors[level].threshold


def all_claims(
    method: BlackBoxMethod,
    key: Key,
    suspect: Predictor,
    surrogate: nn.Module,
    images: Tensor,
    masks: Tensor,
    plan: ClaimPlan,
    seed: int,
) -> list[Claim]:
    """The claims of `layout.CLAIMS` against one suspect; of a method without a trigger those that need none.

    images float (N, C, H, W) and masks float (N, H, W) of 0 and 1 are the claimant's own, as is the `surrogate`, a network
    trained on them. The suspect is seen through its answers alone.
    """
    claimant = Owner(surrogate, from_model(surrogate, next(surrogate.parameters()).device), images, masks)
    keys = [
        method.make_key(secret(seed, "key", i), key.shape, claimant).model_copy(update={"detectors": key.detectors})
        for i in range(plan.keys)
    ]

    def score(candidate: Key) -> float:
        return float(ask(method, candidate, {"": suspect}, [images[:32]])[""].triggered.double().mean())

    best = max(keys, key=score)
    claims = [Claim("wrong-key", keys[0]), Claim("search", best, malicious=True)]
    if plan.climb:
        claims.append(Claim("climb", climb(method, keys[0], suspect, images, plan.climb, seed)))
    if isinstance(method, EmbeddedMark):
        change = universal(surrogate, images, method.target(masks, keys[0]), plan, seed)
        claims += [
            Claim("wrong-trigger", key, Trigger(kind=method.other_trigger)),
            Claim("natural", key, lambda batch: natural(batch, derive(seed, "natural"))),
            Claim("adversarial", keys[0], lambda batch: (batch + change).clamp(0, 1), malicious=True),
        ]
    return sorted(claims, key=lambda claim: CLAIMS.index(claim.name))


def universal(model: nn.Module, images: Tensor, targets: Tensor, plan: ClaimPlan, seed: int) -> Tensor:
    """One change of all images that makes `model` answer with `targets`: float (C, H, W) in [-epsilon, epsilon].

    A universal adversarial perturbation by signed gradient steps (Shafahi et al., AAAI 2020). images float (N, C, H, W) in
    [0, 1], targets float (N, H, W) in [0, 1].
    """
    device = next(model.parameters()).device
    change = torch.zeros(images.shape[1:], device=device, requires_grad=True)
    rng = torch_rng(seed, "universal")
    for _ in range(plan.steps):
        chosen = torch.randint(len(images), (16,), generator=rng)
        logits = foreground(model, (images[chosen].to(device) + change).clamp(0, 1))
        (gradient,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(logits, targets[chosen].to(device)), change)
        with torch.no_grad():
            change -= 2.5 * plan.epsilon / plan.steps * gradient.sign()
            change.clamp_(-plan.epsilon, plan.epsilon)
    return change.detach().cpu()
