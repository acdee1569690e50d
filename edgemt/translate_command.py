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
    from edgemt.segment import Segment
    from edgemt.translator import Asked, Translator

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
    add("--context", action="append", default=[], metavar="TEXT",
        help="a sentence that comes before the text; may be repeated (decoder-only models)")  # fmt: skip
    add("--context-sentences", type=int, default=0, metavar="N",
        help="read the N sentences before each one as context (decoder-only models)")  # fmt: skip
    add("--markup", action="store_true",
        help="the text is HTML or XML: translate what is between the tags (decoder-only models)")  # fmt: skip
    add("--stream", action="store_true", help="write each word as soon as it is certain")
    add(
        "--sample", action="store_true", help="draw the words, as the model's makers do (decoder-only models)"
    )
    add("--seed", type=int, metavar="N", help="with --sample: the same words every time")
    add("--draft", metavar="BUNDLE|lookup",
        help="faster, with a smaller bundle of the same tokenizer or with words of the text itself; the "
        "output stays the same (decoder-only models)")  # fmt: skip
    add("--threads", type=int, default=1, metavar="N", help="processor cores to use (default: 1)")
    add(
        "--json", action="store_true", help="one JSON object a sentence: source, target, direction, score, ms"
    )


def run(args: argparse.Namespace) -> int:
    check(args)
    with source_texts(args) as (texts, head), destination(args.output) as write:
        from edgemt.translator import load

        asked: Asked = {"beam": args.beam, "scores": args.json and not args.sample, "markup": args.markup}
        if args.glossary:
            from edgemt.glossary import read_glossary

            asked["glossary"] = read_glossary(args.glossary)
        translator = load(args.bundle, threads=args.threads, draft=args.draft)
        if args.sample:
            asked["sampling"] = translator.sampling(args.seed)
        if args.context or args.context_sentences:
            from edgemt.prompted import Context

            asked["context"] = Context(args.context, args.context_sentences)  # goes on from line to line
        asked["source_lang"], asked["target_lang"] = args.source_lang, args.target_lang
        if args.markup:
            texts = iter(["".join(texts)])
        elif head is not None:
            direction = translator.direction(head, args.source_lang, args.target_lang)
            asked["source_lang"], asked["target_lang"] = direction
        for line, text in enumerate(texts, 1):
            for part, segment in parts(translator, text, args.stream, asked):
                if not args.json:
                    write(part)
                if segment:
                    if args.json:
                        write(as_json(segment, line))
                    else:
                        warn_of(segment, line)
                    line += segment.source.count("\n")  # all of HTML is one text
    return 0


def check(args: argparse.Namespace) -> None:
    for name, least in (("beam", 1), ("threads", 1), ("context_sentences", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {value} is too small; give {least} or more")
    if args.seed is not None and not args.sample:
        raise UsageError("--seed is for sampling; give --sample too, or leave it out")
    if args.stream and args.json:
        raise UsageError("--stream writes words, and --json whole sentences; leave out one of them")


def parts(
    translator: Translator, text: str, stream: bool, asked: Asked
) -> Iterator[tuple[str, Segment | None]]:
    """The translation in parts; with the last part of a segment comes the segment."""
    if stream:
        return translator.streamed(text, **asked)
    return ((segment.target, segment) for segment in translator.segments(text, **asked))


def warn_of(segment: Segment, line: int) -> None:
    """What a user should look at in a translation, on standard error."""
    if segment.missing:
        warn(f"line {line}: {', '.join(segment.missing)} is missing in: {segment.target}")
    if segment.missing_tags:
        warn(f"line {line}: lost by the model: {' '.join(segment.missing_tags)}, check: {segment.target}")
    if not segment.finished:
        warn(f"line {line}: the model did not come to an end in: {segment.target}")
    if segment.doubt:
        what = "has no translation" if segment.doubt == "empty" else "may not be translated"
        warn(f"line {line}: this {what}: {segment.source}")


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
    for name, value in (("missing_terms", segment.missing), ("missing_tags", segment.missing_tags)):
        if value:
            data[name] = value
    if not segment.finished:
        data["finished"] = False
    if segment.doubt:
        data["doubt"] = segment.doubt
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
