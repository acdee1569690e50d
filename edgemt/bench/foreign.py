"""A translator that is not ours: a resident process which is given a line and answers with a line."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from typing import Literal

from edgemt.bench import process
from edgemt.errors import EdgemtError, UsageError

LINES = ("text", "tsv")
GRACE_S = 2.0  # between asking a process to end and killing it
GREETING_S = 0.5  # at most: how long a second line is waited for after the first answer
SAID = 4096  # bytes from the end of stderr that are looked at
SHOWN = 120  # characters of a command in a message
MOST = 1 << 24  # bytes of one answer


class Foreign:
    """A command that translates, as a process (or one for each pair of languages) that stays.

    `lines` says what is written for each text: "text", the source line alone, with "{source_lang}" and
    "{target_lang}" in the command filled in, so that a command that has them is run once for each pair;
    "tsv", source_lang, target_lang and source, separated by tabs. Either way one line comes back, at once.
    Not thread-safe. A `with` block ends the processes, with all that they started.

    Every method raises EdgemtError if the command cannot be started, ends (with its last line of stderr),
    closes its output, writes more lines than it was asked for, or takes longer than `timeout_s` for one line.
    """

    def __init__(self, command: str, lines: Literal["text", "tsv"] = "text", timeout_s: float = 60.0) -> None:
        """Starts nothing yet. Raises UsageError for a command that is empty or has an open quotation mark."""
        if lines not in LINES:
            raise UsageError(f"lines are {lines!r}; give one of {', '.join(LINES)}")
        try:
            self._words = shlex.split(command)
        except ValueError:
            raise UsageError(
                f"the command {command!r} has a quotation mark that is not closed; close it"
            ) from None
        if not self._words:
            raise UsageError("the command is empty; give a program that reads a line and answers with a line")
        self.command, self.lines, self.timeout_s = command, lines, timeout_s
        self._processes: dict[tuple[str, ...], _Process] = {}

    def start(self, text: str, source_lang: str, target_lang: str) -> float:
        """Start afresh and translate `text`: seconds from the start of the process to its answer."""
        self.close()
        self.translate(text, source_lang, target_lang)
        (started,) = self._processes.values()
        return started.first_s

    def translate(self, text: str, source_lang: str, target_lang: str) -> str:
        """The command's answer; line breaks in the text become spaces. Starts what is not running yet."""
        line = " ".join(text.splitlines())
        words = self._words
        if self.lines == "tsv":
            line = f"{source_lang}\t{target_lang}\t{line}"
        else:
            words = [
                w.replace("{source_lang}", source_lang).replace("{target_lang}", target_lang) for w in words
            ]
        key = tuple(words)
        running = self._processes.get(key)
        if running is None:
            running = self._processes[key] = _Process(words)
        return running.ask(line, self.timeout_s)

    def peak_rss(self) -> int | None:
        """The most memory each running process and its children have held (VmHWM), added up, in bytes."""
        known = [size for pid in self._pids() if (size := process.peak_rss(pid)) is not None]
        return sum(known) if known else None

    def cpu_s(self) -> float:
        """CPU seconds that the running processes and their children have used; 0 where it is not told."""
        return process.cpu_s(self._pids())

    def faults(self) -> tuple[int, int]:
        """Minor and major page faults of the running processes and their children so far."""
        return process.faults(self._pids())

    def _pids(self) -> list[int]:
        return [pid for running in self._processes.values() for pid in process.group(running.pid)]

    def close(self) -> None:
        """End all processes: their input ends, and what is still there after `GRACE_S` is killed."""
        while self._processes:
            self._processes.popitem()[1].close()

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Process:
    """One running command. It leads a process group of its own, so that its children end with it."""

    def __init__(self, words: list[str]) -> None:
        shown = " ".join(shlex.join(words).split())
        self.shown = shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
        self.first_s = math.nan  # from its start to its first answer
        self.answers = 0
        self._started = time.perf_counter()
        self._rest = b""  # read, and not yet a whole line
        # A file takes any amount of stderr without a reader, and costs the clock nothing.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                bufsize=0,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._said.close()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise EdgemtError(
                f"cannot start the command `{self.shown}` ({reason}); check its name and that it may be run"
            ) from None
        self.pid = self._child.pid
        assert self._child.stdin and self._child.stdout
        self._in, self._out = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def ask(self, line: str, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        self._check_silence()
        pending = memoryview(line.encode("utf-8", "replace") + b"\n")
        poller = select.poll()
        poller.register(self._out, select.POLLIN)
        poller.register(self._in, select.POLLOUT)
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            ready = dict(poller.poll(max(left, 0) * 1000))
            if self._in in ready:
                pending = pending[self._write(pending) :]
                if not pending:
                    poller.unregister(self._in)
            if self._out in ready and not self._read():
                raise self._ended()
            if len(self._rest) > MOST:
                raise self._failure(f"wrote {MOST >> 20} MiB without a line end, after {self._count()}")
            if left <= 0 and b"\n" not in self._rest:
                raise self._failure(
                    f"gave no answer within {timeout_s:g} s, after {self._count()}; it must answer each line "
                    "at once (does it flush its output?)"
                )
        answer, self._rest = self._rest.split(b"\n", 1)
        self.answers += 1
        if self.answers == 1:
            self._first()
        return answer.decode("utf-8", "replace").rstrip("\r")

    def _first(self) -> None:
        """Wait as long again for what should not come: after a greeting ("ready") every answer would be taken
        for that of the next line."""
        self.first_s = time.perf_counter() - self._started
        if not self._rest:
            select.select([self._out], [], [], min(self.first_s, GREETING_S))
        # Also readable where its output has ended, which is no fault before the next line is asked.
        self._check_silence()

    def _check_silence(self) -> None:
        if self._read() or self._rest:
            raise self._failure(
                f"wrote more than one line for a line, after {self._count()}; it must write answers only"
            )

    def _write(self, data: memoryview) -> int:
        try:
            return os.write(self._in, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)  # it reads no more; what it still says is an answer, or the end of its output

    def _read(self) -> bool:
        """Take what there is; whether there was anything."""
        try:
            data = os.read(self._out, 1 << 16)
        except BlockingIOError:
            return False
        self._rest += data
        return bool(data)

    def _ended(self) -> EdgemtError:
        """Its output is at its end: say how it went."""
        code = self._exit_code(GRACE_S)
        how = "closed its output" if code is None else f"ended ({_reason(code)})"
        return self._failure(f"{how} after {self._count()}, with a line still unanswered")

    def _failure(self, what: str) -> EdgemtError:
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - SAID))
        said = self._said.read().decode("utf-8", "replace").strip().splitlines()
        last = f"; its last words: {said[-1].strip()[:300]}" if said else ""
        return EdgemtError(f"the command `{self.shown}` {what}{last}")

    def _count(self) -> str:
        return "one answer" if self.answers == 1 else f"{self.answers or 'no'} answers"

    def _exit_code(self, wait_s: float) -> int | None:
        """The exit code, negative for a signal; None if it still runs. It stays a zombie, so that nobody else
        can get its number before its group is killed."""
        deadline = time.monotonic() + wait_s
        while (found := os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.005)
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def close(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._exit_code(GRACE_S) is None:
            self._kill(signal.SIGTERM)
            self._exit_code(GRACE_S)
        self._kill(signal.SIGKILL)
        self._child.wait()
        self._said.close()

    def _kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
