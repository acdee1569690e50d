"""Ctrl-C and SIGTERM end a command with an exit code of their own, whatever code they strike.

Python raises KeyboardInterrupt wherever it is, and what is struck may make another error of it: a class
body ends in "RuntimeError: Error calling __set_name__" (before 3.12), logging in "cannot release
un-acquired lock", and a finalizer drops it. So the signal is remembered, and counts more than what
became of it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ends: list[int] = []  # the signals that came, of the innermost `stoppable`


class Stopped(BaseException):
    """The command was asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as shells have it
        self.reason = "interrupted" if number == signal.SIGINT else "terminated"


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise KeyboardInterrupt; it ends with Stopped if one of them came,
    or if something else raised KeyboardInterrupt: a worker that was interrupted, say.

    Signals that somebody else handles, or that are ignored (as under nohup), stay so. Only the main thread
    can ask for signals; in another this does nothing.
    """
    outer = _ends[:]
    before = {}
    if threading.current_thread() is threading.main_thread():
        _ends.clear()
        for number, default in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        ):
            if signal.getsignal(number) is default:
                before[number] = signal.signal(number, _come)
    try:
        yield
    except BaseException as error:
        heed()
        if isinstance(error, KeyboardInterrupt):
            raise Stopped(signal.SIGINT) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ends[:] = outer


def heed() -> None:
    """Raise Stopped if a signal came: between the steps of long work, for one that was dropped."""
    if _ends:
        raise Stopped(_ends[0]) from None


def _come(number: int, frame: object) -> None:
    _ends.append(number)
    raise KeyboardInterrupt
