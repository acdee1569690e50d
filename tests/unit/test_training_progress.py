"""The log is strict JSON without doubled steps, the bar says what matters, a rising loss is noticed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from edgemt.errors import EdgemtError
from edgemt.training.divergence import RISE, SPAN, Watcher
from edgemt.training.log import LOG, Log, forget_peak, memory_mb, read_log
from edgemt.training.progress import Bar


def write(directory: Path, first: int, last: int) -> None:
    log = Log(directory, first - 1)
    for step in range(first, last + 1):
        log.step(step, loss=1 / step)
        if step % 2 == 0:
            log.event(step, "saved")
    log.close()


def without_time(directory: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_log(directory / LOG)]


def test_a_log_cut_off_by_a_crash_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for directory in (broken, unbroken):
        directory.mkdir()
    write(broken, 1, 5)  # the state was saved after step 3
    with (broken / LOG).open("a") as file:
        file.write('{"time": 1, "step": 6, "lo')
    write(broken, 4, 8)
    write(unbroken, 1, 8)
    assert without_time(broken) == without_time(unbroken)


def test_a_new_run_forgets_an_old_log(tmp_path: Path) -> None:
    write(tmp_path, 1, 3)
    write(tmp_path, 1, 2)
    assert [line["step"] for line in without_time(tmp_path) if "loss" in line] == [1, 2]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.step(1, loss=float("nan"), deep={"norms": [float("inf"), 2.0]})
    line = (tmp_path / LOG).read_text()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["loss"] is None and found["deep"] == {"norms": [None, 2.0]}


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / LOG).symlink_to("/dev/full")
    log = Log.__new__(Log)
    log.path = tmp_path / LOG
    log.file = log.path.open("a")
    with pytest.raises(
        EdgemtError, match=r"log.jsonl cannot be written \(No space left on device\); make room"
    ):
        log.step(1)


def test_memory_is_the_most_this_process_has_held() -> None:
    held = bytearray(b"1") * 200_000_000
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    most = memory_mb("cpu")
    assert most is not None and 200 < resident < most + 5  # the kernel counts in batches of pages
    del held
    assert abs((memory_mb("cpu") or 0) - most) < 5
    forget_peak("cpu")
    assert (memory_mb("cpu") or 0) < most - 150


def show(bar: Bar, step: int, loss: float | None = 2.0, skipped: int = 0) -> None:
    bar.update(step, 10, loss=loss, scale=65536.0, skipped=skipped, tokens_per_second=1234, memory_mb=512.3)


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    bar = Bar(10, 4, stream, every=1000)
    show(bar, 5, loss=None, skipped=1)
    for step in range(6, 11):
        show(bar, step, skipped=1)
    bar.close()
    first, last = stream.getvalue().splitlines()
    assert first.startswith("step 5/10: loss –, scale 65536, skipped 1, 1,234 tokens/s, 512 MB, 0:0")
    assert last.startswith("step 10/10: loss 2.000,") and last.endswith("0:00 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    bar = Bar(10, 4, stream)
    show(bar, 5)
    bar.say("something happened")
    show(bar, 10)
    bar.close()
    assert "something happened\n" in stream.getvalue()
    last = stream.getvalue().split("\r")[-1]
    assert "100%" in last and "10/10" in last and "loss 2.000, scale 65536, skipped 0, 1,234 tokens/s" in last


def feed(watcher: Watcher, losses: list[float], start: int = 1) -> dict[int, str]:
    found = {step: watcher.update(step, loss, 0) for step, loss in enumerate(losses, start)}
    return {step: reason for step, reason in found.items() if reason}


def test_a_noisy_falling_loss_is_no_divergence() -> None:
    losses = [9 * 0.99**step + (1.5 if step % 3 else -1.5) for step in range(600)]
    assert feed(Watcher(30), losses) == {}


def test_a_rising_loss_is_said_once_and_again_after_a_recovery() -> None:
    watcher = Watcher(30)
    assert feed(watcher, [4.0] * 100) == {}
    found = feed(watcher, [4.0 + 3 * RISE] * 100, 101)
    (step,) = found
    assert 101 < step < 101 + SPAN
    assert "it was 4.00 at step" in found[step] and watcher.diverged
    assert feed(watcher, [4.0] * 300, 201) == {} and not watcher.diverged
    assert len(feed(watcher, [4.0 + 3 * RISE] * 100, 501)) == 1


def test_nothing_finite_for_long_is_divergence() -> None:
    watcher = Watcher(3)
    assert [watcher.update(step, None, step) for step in (1, 2)] == [None, None]
    assert "not been finite for 3 steps in a row" in str(watcher.update(3, None, 3))


def test_a_resumed_watcher_judges_alike() -> None:
    losses = [5.0] * 60 + [7.0] * 60
    whole, first, second = Watcher(30), Watcher(30), Watcher(30)
    expected = feed(whole, losses)
    feed(first, losses[:70])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert expected and feed(second, losses[70:], 71) == expected
