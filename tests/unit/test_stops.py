"""Commands end with their own exit code for SIGINT and SIGTERM, whatever these became on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from edgemt.stops import Stopped, heed, stoppable


def in_a_class_body() -> None:
    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGINT)

    type("Owner", (), {"name": Named()})  # RuntimeError before Python 3.12


def made_another_error() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        raise ImportError("numpy._core.multiarray failed to import")


def dropped() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    Finalized()
    heed()


def without_a_signal() -> None:
    raise KeyboardInterrupt  # for a worker that was interrupted alone


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "struck, exit_code",
    [(in_a_class_body, 130), (made_another_error, 143), (dropped, 143), (without_a_signal, 130)],
)
def test_a_signal_counts_more_than_what_became_of_it(struck: Callable[[], None], exit_code: int) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stoppable():
        struck()
    assert stopped.value.exit_code == exit_code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    heed()  # forgotten with its command


def test_errors_without_a_signal_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), stoppable():
        _ = 1 // 0
    with stoppable():
        heed()


def test_ignored_signals_stay_ignored() -> None:
    """As under nohup, or in the background of a script."""
    code = (
        "import signal; from edgemt.stops import stoppable\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with stoppable(): signal.raise_signal(signal.SIGINT)\n"
        "print('went on')"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "went on\n"
