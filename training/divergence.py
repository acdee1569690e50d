"""Has training diverged? The loss has risen far above its best, or nothing has been finite for too long."""

from __future__ import annotations

from typing import Any

SPAN = 50  # steps that the smoothed loss looks back, roughly
RISE = 1.0  # nats a token above the best: the perplexity is 2.7 times what it was


class Watcher:
    """Follows the loss, step by step; part of the state of a run, so that a resumed run judges alike.

    The loss is smoothed over about SPAN steps (batches of short sentences differ from batches of long ones
    by more than a few steps of training) and judged from the SPANth finite step on. Above the best so far by
    RISE it has diverged; below half of that again it has recovered.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.seen = 0  # finite steps
        self.smoothed = 0.0
        self.best = float("inf")
        self.best_step = 0
        self.diverged = False

    def update(self, step: int, loss: float | None, skipped_in_row: int) -> str | None:
        """Why the run has diverged, at the step where it shows; `loss` is None in a skipped step.

        A loss that has risen is said once; too many skipped steps in a row are said at each of them.
        """
        if skipped_in_row >= self.max_skipped:
            self.diverged = True
            return f"the loss or the gradient has not been finite for {skipped_in_row} steps in a row"
        if loss is None:
            return None
        self.seen += 1
        # The plain mean at first, so that the first losses do not count for more than the others.
        self.smoothed += (loss - self.smoothed) / min(self.seen, SPAN)
        if self.seen < SPAN:
            return None
        if self.smoothed < self.best:
            self.best, self.best_step = self.smoothed, step
        rise = self.smoothed - self.best
        if self.diverged:
            self.diverged = rise >= RISE / 2
            return None
        if rise < RISE:
            return None
        self.diverged = True
        best = f"it was {self.best:.2f} at step {self.best_step}"
        return f"the loss has risen to {self.smoothed:.2f} (smoothed over {SPAN} steps), {best}"

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("seen", "smoothed", "best", "best_step", "diverged")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
