"""`edgemt translate`: arguments, a file, or standard input as a filter; sentence by sentence."""

from __future__ import annotations

import argparse
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from edgemt.errors import EdgemtError, UsageError

if TYPE_CHECKING:
    from edgemt.translator import Segment

HEAD = 1 << 16  # bytes of a file that its direction is found from


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="*", metavar="TEXT", help="what to translate (default: standard input, line by line)")
    add("-b", "--bundle", type=Path, help="folder or .edgemt file (default: medical zh-en, part of edgemt)")
    add("-i", "--input", metavar="FILE", help="translate a file")
    add("-o", "--output", metavar="FILE", help="write to a file, which appears when it is complete")
    add(
        "--from",
        dest="source_lang",
        metavar="LANG",
        help="language of the text (default: found from its script)",
    )
    add("--to", dest="target_lang", metavar="LANG", help="language to translate to")
    add(
        "--beam",
        type=int,
        metavar="N",
        help="hypotheses kept while searching; 1 is greedy (default: the bundle's)",
    )
    add("--glossary", action="append", default=[], metavar="FILE|TERM=TERM",
        help="terms to be translated so: a TSV, CSV or JSON file, or one pair; may be repeated")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N", help="processor cores to use (default: 1)")
    add(
        "--json", action="store_true", help="one JSON object a sentence: source, target, direction, score, ms"
    )


def run(args: argparse.Namespace) -> int:
    for name in ("beam", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value} is too small; give 1 or more")
    with source_texts(args) as (texts, head), destination(args.output) as write:
        from edgemt.translator import load

        glossary = None
        if args.glossary:
            from edgemt.glossary import read_glossary

            glossary = read_glossary(args.glossary)
        translator = load(args.bundle, threads=args.threads)
        source_lang, target_lang = args.source_lang, args.target_lang
        if head is not None:
            source_lang, target_lang = translator.direction(head, source_lang, target_lang)
        for number, text in enumerate(texts, 1):
            segments = translator.segments(
                text,
                source_lang=source_lang,
                target_lang=target_lang,
                glossary=glossary,
                beam=args.beam,
                scores=args.json,
            )
            for segment in segments:
                write(as_json(segment, number) if args.json else segment.target)
                if segment.missing and not args.json:
                    warn(f"line {number}: {', '.join(segment.missing)} is missing in: {segment.target}")
    return 0


def as_json(segment: Segment, line: int) -> str:
    """One line of JSON; nothing for white space."""
    if not segment.source.strip():
        return ""
    data = {
        "line": line,
        "source": segment.source,
        "target": segment.target,
        "direction": segment.direction,
        "score": None if segment.score is None else round(segment.score, 4),
        "source_tokens": segment.source_tokens,
        "target_tokens": segment.target_tokens,
        "ms": round(segment.ms, 3),
    }
    if segment.missing:
        data["missing_terms"] = segment.missing
    return json.dumps(data, ensure_ascii=False) + "\n"


def warn(message: str) -> None:
    print(f"edgemt translate: {message}", file=sys.stderr)


@contextmanager
def source_texts(args: argparse.Namespace) -> Iterator[tuple[Iterator[str], str | None]]:
    """The lines to translate, and for a file its beginning: its direction is one for the whole file."""
    if args.text and args.input:
        raise UsageError("give either a text or -i FILE, not both")
    if args.text:
        text = " ".join(args.text)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("the text is not valid UTF-8; check the terminal's encoding") from None
        if not text.strip():
            raise UsageError("the text is empty; give a text, -i FILE, or standard input")
        from edgemt.text import lines

        yield lines(text + "\n"), text
    elif args.input and args.input != "-":
        try:
            file = io.BufferedReader(io.FileIO(args.input), HEAD)
        except OSError as error:
            raise UsageError(f"{args.input} cannot be read ({error.strerror}); check the path") from None
        with file:
            head = file.peek(HEAD).decode(errors="ignore")
            yield decoded(file, args.input), head
    elif sys.stdin is None:
        raise UsageError("there is nothing to translate; give a text, -i FILE, or standard input")
    else:
        if sys.stdin.isatty():
            warn("type a line to translate and press Enter; Ctrl-D ends")
        yield decoded(sys.stdin.buffer, "standard input"), None


def decoded(file: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a file with their line breaks, each as soon as it is there. Not UTF-8: UsageError."""
    offset = 0
    for number, line in enumerate(file, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{name} is not UTF-8 at byte {offset + error.start} (line {number}); "
                "convert it first, for example with: iconv -f GB18030 -t UTF-8"
            ) from None
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


@contextmanager
def destination(output: str | None) -> Iterator[Callable[[str], None]]:
    """A function that writes text at once, to standard output or a file that appears when all is written."""
    path = Path(output) if output and output != "-" else None
    if path is None:
        yield writer(1, "standard output")
    elif path.exists() and not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe: nothing to rename
        with opened(path, os.O_WRONLY) as descriptor:
            yield writer(descriptor, output)
    else:
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, shown=path) as descriptor:
                yield writer(descriptor, output)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def opened(path: Path, flags: int, shown: Path | None = None) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(
            f"{shown or path} cannot be written ({error.strerror}); choose another place"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def writer(descriptor: int, name: str | None) -> Callable[[str], None]:
    """Writes UTF-8, unbuffered, whatever the locale. A full disk is an EdgemtError."""

    def write(text: str) -> None:
        data = memoryview(text.encode())
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EdgemtError(f"{name} could not be written ({error.strerror}); free some space") from None

    return write
