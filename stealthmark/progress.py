"""What a stage says of itself while it works: plain lines to standard error, where its log is.

Not tqdm, which draws one line over and over: in a log that is one endless line of carriage returns. Not rich, which prints
nothing into a file until the end.
"""

import sys
import time

#: How many seconds pass at least between two lines of progress.
EVERY_S = 5.0


def log(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """The progress of long work: what, how far, how fast. Prints one line every few seconds, and the last one."""

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.started = self.printed = time.monotonic()

    def step(self, done: int) -> None:
        """Say that `done` units of the total are done."""
        now = time.monotonic()
        if done < self.total and now - self.printed < EVERY_S:
            return
        self.printed = now
        rate = done / max(now - self.started, 1e-9)
        log(f"{self.what}: {done}/{self.total} {self.unit} ({rate:.1f}/s)")
