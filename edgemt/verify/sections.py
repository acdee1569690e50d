"""A report's parts: sections of checks, figures and tables. One that fails costs no other."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgemt.errors import EdgemtError

T = TypeVar("T")

PASSED, FAILED, NOT_RUN = "pass", "fail", "not run"
FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/'\",;:()]+/)+")  # of an absolute path, which are private


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `required`: the section fails if it does not hold."""

    what: str
    holds: bool
    found: Any = None
    expected: Any = None
    required: bool = True


@dataclass(frozen=True)
class Table:
    """`rows` have a cell for each of `columns`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Section:
    """One part of the report. `reason`: why it failed or was not run, in one sentence."""

    name: str
    title: str
    status: str = PASSED
    reason: str = ""
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def judged(self) -> Section:
        """The same, its status by its checks."""
        failed = [check.what for check in self.checks if check.required and not check.holds]
        if failed and self.status == PASSED:
            self.status, self.reason = FAILED, "; ".join(failed)
        self.facts = anonymous(self.facts)
        return self

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Step:
    """A section to come: `make` returns its content, or raises what keeps it from being made."""

    name: str
    title: str
    make: Callable[[], Section]


class NotRun(Exception):
    """Raised by a step that does not apply here: why, in one sentence."""


def not_run(name: str, title: str, reason: str) -> Step:
    def make() -> Section:
        raise NotRun(reason)

    return Step(name, title, make)


def collect(steps: Iterable[Step]) -> list[Section]:
    """Every step's section, in order; what a step raises becomes its section's status and reason."""
    return [taken(step) for step in steps]


def taken(step: Step) -> Section:
    say(f"{step.title} …")
    try:
        section = step.make()
    except NotRun as reason:
        return Section(step.name, step.title, NOT_RUN, str(reason))
    except EdgemtError as error:
        return Section(step.name, step.title, FAILED, without_folders(str(error)))
    except Exception as error:  # of a model that nobody has tried: the report says what it ran into
        said = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        return Section(step.name, step.title, FAILED, without_folders(said))
    return section.judged()


def without_folders(text: str) -> str:
    """The text, absolute paths in it without the folders, which name persons and machines."""
    return FOLDERS.sub("", text.replace(str(Path.home()), "/~"))


def anonymous(value: Any) -> Any:
    """JSON data, its texts `without_folders`."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, dict):
        return {key: anonymous(item) for key, item in value.items()}
    return [anonymous(item) for item in value] if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    print(f"edgemt verify-model: {text}", file=sys.stderr, flush=True)


def counted(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, told one by one on a line that overwrites itself, where somebody looks at it."""
    for number, item in enumerate(items, 1):
        if sys.stderr.isatty():
            end = "\n" if number == len(items) else ""
            print(f"\r  {what} {number}/{len(items)}", end=end, file=sys.stderr, flush=True)
        yield item
