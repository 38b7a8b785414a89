"""Access levels: what each shows of probabilities, by hand."""

import pytest
import torch

from stealthmark.access import LEVELS, at_access
from stealthmark.errors import UserError

P = [0.0, 0.004, 0.096, 0.1, 0.26, 0.5, 0.74, 0.9, 0.904, 1.0]
SHOWN = {
    "logits": P,
    "probabilities": P,
    "rounded-0.01": [0.0, 0.0, 0.1, 0.1, 0.26, 0.5, 0.74, 0.9, 0.9, 1.0],
    "rounded-0.1": [0.0, 0.0, 0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9, 1.0],
    "8-bit": [n / 255 for n in (0, 1, 24, 26, 66, 128, 189, 230, 231, 255)],  # 0.5 is 127.5, and goes to the even neighbour
    "clipped-0.1": [0.0, 0.0, 0.0, 0.1, 0.26, 0.5, 0.74, 0.9, 1.0, 1.0],
    "min-max": P,
    "label": [0.0] * 6 + [1.0] * 4,
}


def test_every_level_by_hand():
    assert list(SHOWN) == list(LEVELS)
    for level, expected in SHOWN.items():
        shown = at_access(lambda images: torch.tensor(P).view(1, 2, 5), level)(torch.zeros(1, 3, 2, 5))
        torch.testing.assert_close(shown, torch.tensor(expected).view(1, 2, 5), rtol=0, atol=1e-6, msg=level)


def test_min_max_stretches_each_map_by_itself_and_keeps_the_order():
    maps = torch.tensor([[[0.2, 0.3], [0.4, 0.6]], [[0.0, 0.5], [0.25, 0.125]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 1.0], [0.5, 0.25]]])
    torch.testing.assert_close(LEVELS["min-max"](maps), expected)
    tiny = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 1e-7
    shown = LEVELS["min-max"](tiny)
    assert (shown.amin((1, 2)) == 0).all() and (shown.amax((1, 2)) == 1).all()
    assert (shown.flatten(1).gather(1, tiny.flatten(1).argsort(1)).diff(dim=1) >= 0).all()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_map_has_nothing_to_stretch(value):
    assert torch.equal(LEVELS["min-max"](torch.full((2, 3, 3), value)), torch.zeros(2, 3, 3))


def test_a_stretched_map_does_not_tell_a_shift_or_a_gain():
    p = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(LEVELS["min-max"](0.3 + 0.5 * p), LEVELS["min-max"](p), rtol=0, atol=1e-6)


def test_an_unknown_level_is_refused():
    with pytest.raises(UserError, match=f"unknown access level 'gradients'; allowed: {', '.join(LEVELS)}"):
        at_access(lambda images: images[:, 0], "gradients")
