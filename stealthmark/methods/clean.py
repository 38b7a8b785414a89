"""`clean`: no mark. The reference for harm, and the starting point of marks made by fine-tuning."""

from stealthmark.method import Unmarked


class Method(Unmarked):
    """Trains on images and masks as they are; has no key to examine with."""
