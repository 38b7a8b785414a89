"""Progress of long work as plain lines in the log: what, how far, how fast."""

import sys
import time


class Progress:
    """Prints at most one line every few seconds, and the last one, to standard error."""

    def __init__(self, what: str, total: int, unit: str, every_s: float = 5.0):
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.start = self.printed = time.monotonic()

    def step(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done < self.total and now - self.printed < self.every_s:
            return
        self.printed = now
        rate = done / max(now - self.start, 1e-9)
        print(f"{self.what}: {done}/{self.total} {self.unit} ({rate:.1f}/s) {note}".rstrip(), file=sys.stderr, flush=True)
