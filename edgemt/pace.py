"""How many tokens a draft should propose: by how many were right lately, and by what a step of more costs."""

from __future__ import annotations

MOST = 8  # tokens proposed at once
NEWEST = 0.15  # weight of the newest round in a mean
TRIAL = 2  # tokens proposed where it does not pay, to see whether that has changed,
PAUSE, LONGEST_PAUSE = 4, 256  # after so many steps without; twice as many each time


class Pace:
    """What proposing has cost and brought. Threads may share one: a number that is lost does no harm."""

    def __init__(self) -> None:
        self.rate = 0.7  # of proposed tokens whose predecessors were right, those that were right too
        self.plain: float | None = None  # seconds of a step of one token
        self.more: float | None = None  # seconds that each proposed token adds, the draft's own included
        self.rest, self.pause = 0, PAUSE

    def ask(self) -> int:
        """How many tokens to propose next."""
        if self.rest:
            self.rest -= 1
            return 0
        if self.plain is None:
            return 0
        if self.more is None:
            return TRIAL
        if best := self.best(self.plain, self.more):
            self.pause = PAUSE
            return best
        self.rest, self.pause = self.pause, min(2 * self.pause, LONGEST_PAUSE)
        return TRIAL

    def best(self, plain: float, more: float) -> int:
        """The number that brings the most tokens a second."""
        best, fastest, tokens = 0, 1 / plain, 1.0
        for count in range(1, MOST + 1):
            tokens += self.rate**count
            speed = tokens / (plain + count * more)
            if speed > fastest:
                best, fastest = count, speed
        return best

    def took(self, proposed: int, right: int, seconds: float | None) -> None:
        """A round with so many proposed tokens, of which the first `right` were; None: not to be timed."""
        if proposed:
            tried = right + (right < proposed)
            self.rate += NEWEST * (right / tried - self.rate)
        if seconds is None:
            return
        if not proposed:
            self.plain = mean(self.plain, seconds)
        elif self.plain is not None:
            self.more = mean(self.more, max(0.0, seconds - self.plain) / proposed)


def mean(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (new - old)
