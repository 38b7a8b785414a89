"""A list of attacks, one after the other: `[prune, finetune, jpeg]` in a suite, or `{name: stack, steps: [...]}`."""

from stealthmark.attack import Stack


class Attack(Stack):
    """Strength: that of the last step."""
