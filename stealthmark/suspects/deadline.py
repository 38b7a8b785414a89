"""A deadline for work that cannot be trusted to end."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")
#: The name of the threads that such work runs in.
WORKER = "work-within-a-deadline"


def within(seconds: float, work: Callable[[], Result], cut: Callable[[], None]) -> Result:
    """What `work` returns, or raises, when it runs in a thread of its own.

    Raises TimeoutError once `seconds` have passed. Then, and when the wait is interrupted, `cut` is called: it takes away what
    the work waits for, so that its thread ends too.
    """
    outcome: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    Thread(target=run, name=WORKER, daemon=True).start()
    try:
        result, error = outcome.get(timeout=max(seconds, 0))
    except BaseException as reason:
        cut()
        raise TimeoutError if isinstance(reason, Empty) else reason from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
