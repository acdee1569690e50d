"""How far a run is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

SMOOTHING = 0.1  # share of the newest step in the loss and the speed shown
BAR = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Bar:
    """Loss, loss scale, skipped steps, tokens a second, memory and the time left, as of the last step."""

    def __init__(self, total: int, initial: int, stream: TextIO | None = None, every: float = 30.0) -> None:
        """`stream` is standard error if None; `every`: seconds between two lines where it is no terminal."""
        self.stream = stream or sys.stderr
        self.every = every
        self.initial = initial
        self.begun = time.monotonic()
        self.said = -every  # when the last line was written, in seconds since the start
        self.loss: float | None = None
        self.speed: float | None = None
        self.terminal = self.stream.isatty()
        self.tqdm = tqdm(
            total=total,
            initial=initial,
            file=self.stream,
            disable=not self.terminal,
            bar_format=BAR,
            dynamic_ncols=True,
        )

    def update(
        self,
        step: int,
        total: int,
        *,
        loss: float | None,
        scale: float,
        skipped: int,
        tokens_per_second: float,
        memory_mb: float | None,
    ) -> None:
        """Show the state after `step` of `total`; `loss` is None in a step that was skipped."""
        if loss is not None:
            self.loss = smoothed(self.loss, loss)
        self.speed = smoothed(self.speed, tokens_per_second)
        shown = [
            "loss –" if self.loss is None else f"loss {self.loss:.3f}",
            f"scale {scale:g}",
            f"skipped {skipped}",
            f"{self.speed:,.0f} tokens/s",
            *([] if memory_mb is None else [f"{memory_mb:,.0f} MB"]),
        ]
        if self.terminal:
            self.tqdm.total = total
            self.tqdm.set_postfix_str(", ".join(shown), refresh=False)
            self.tqdm.update(step - self.tqdm.n)
            return
        elapsed = time.monotonic() - self.begun
        if elapsed - self.said >= self.every or step >= total:
            self.said = elapsed
            left = elapsed / (step - self.initial) * (total - step) if step > self.initial else 0.0
            print(
                f"step {step}/{total}: {', '.join(shown)}, {duration(left)} left",
                file=self.stream,
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.terminal:
            self.tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        self.tqdm.close()


def smoothed(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
