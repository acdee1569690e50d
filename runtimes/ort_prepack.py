"""Have ONNX Runtime write a graph with its weights packed, so that a later load maps them.

onnxruntime 1.28 puts packed weights at whatever place is next in the file, and its kernels look for the parts
of a weight at multiples of 32 and 64 bytes: mapped as they are, they give other answers without a word
(SmolLM2-135M: logits off by 33). Here each is moved to a multiple of 64, and the graph told of it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import onnxruntime as ort

from edgemt.errors import EdgemtError
from edgemt.runtimes.ort_graph import CPU, reason_of, session_options

ALIGNED = 64  # bytes: a cache line, and the widest register
SMALLEST = 1024  # bytes: smaller tensors stay in the graph's own file
# Field numbers of onnx.proto: ModelProto.graph, GraphProto.initializer, TensorProto.external_data.
TENSORS, ENTRIES = (7, 5), (13,)


def write(graph: Path, folder: Path, role: str) -> None:
    """Write ROLE.onnx and ROLE.bin into `folder`: `graph` optimised for this machine, its weights packed.

    Raises EdgemtError if onnxruntime cannot, or writes it in a form that is not known here.
    """
    options = session_options(threads=1)
    model, data = folder / f"{role}.onnx", folder / f"{role}.bin"
    options.optimized_model_filepath = str(model)
    for name, value in {
        "session.save_external_prepacked_constant_initializers": "1",
        "session.optimized_model_external_initializers_file_name": data.name,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(SMALLEST),
    }.items():
        options.add_session_config_entry(name, value)
    try:
        ort.InferenceSession(str(graph), options, providers=list(CPU))
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise EdgemtError(
            f"the packed weights of {graph} could not be written into {folder} ({reason_of(error)}); "
            "free some room there, or use the bundle as it is"
        ) from None
    try:
        align(model, data)
    except OSError as error:
        raise EdgemtError(f"{data} could not be written ({error.strerror}); free some room there") from None
    except (ValueError, IndexError, KeyError) as error:
        raise EdgemtError(
            f"onnxruntime {ort.__version__} writes packed weights in a form that this edgemt does not know "
            f"({error}); use the bundle as it is"
        ) from None


def align(model: Path, data: Path) -> None:
    """Move every tensor and packed weight in `data` to a multiple of 64 bytes, and tell `model` of it."""
    text = model.read_bytes()
    pieces = dict(sorted(piece for tensor in messages(text, TENSORS) for piece in pieces_of(tensor)))
    moved, end = dict[int, int](), 0
    for start, size in pieces.items():
        moved[start] = -(-max(start, end) // ALIGNED) * ALIGNED
        end = moved[start] + size
    starts = list(pieces)
    if not pieces or any(
        start + pieces[start] > after for start, after in pairwise([*starts, data.stat().st_size])
    ):
        raise ValueError(f"{data.name} does not hold what {model.name} says")
    with data.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, end)  # a full disk is to be an error here, not a signal below
        with mmap.mmap(file.fileno(), 0) as memory:
            for start in reversed(starts):  # each goes back, onto what has gone already
                memory.move(moved[start], start, pieces[start])
    model.write_bytes(
        rewritten(text, TENSORS, lambda tensor: rewritten(tensor, ENTRIES, lambda e: with_places(e, moved)))
    )


def pieces_of(tensor: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) in the file of weights of a TensorProto, and of what was packed of it."""
    entries = dict(entry(body) for body in messages(tensor, ENTRIES))
    if "offset" in entries:
        yield int(entries["offset"]), int(entries["length"])
    for name, value in entries.items():
        if name.startswith("prepacked_"):  # KEY|OFFSET;LENGTH;CHECKSUM|…
            for blob in value.split("|")[1:]:
                offset, length, _ = blob.split(";")
                yield int(offset), int(length)


def with_places(body: bytes, moved: dict[int, int]) -> bytes:
    """A StringStringEntryProto of external_data with every offset replaced."""
    name, value = entry(body)
    if name == "offset":
        value = str(moved[int(value)])
    elif name.startswith("prepacked_"):
        first, *blobs = value.split("|")
        parts = [blob.split(";") for blob in blobs]
        value = "|".join([first, *(";".join([str(moved[int(part[0])]), *part[1:]]) for part in parts)])
    return b"".join(field(number, text.encode()) for number, text in ((1, name), (2, value)))


# Protobuf, as much as this takes (https://protobuf.dev/programming-guides/encoding/).


def entry(body: bytes) -> tuple[str, str]:
    found = {number: text for number, text, _ in fields(body)}
    return (found.get(1) or b"").decode(), (found.get(2) or b"").decode()


def messages(data: bytes, path: tuple[int, ...]) -> Iterator[bytes]:
    """The messages that a path of field numbers leads to."""
    for number, body, _ in fields(data):
        if number == path[0] and body is not None:
            yield from messages(body, path[1:]) if path[1:] else (body,)


def rewritten(data: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """`data` with each message that the path leads to replaced by `change` of it."""
    out = list[bytes]()
    for number, body, whole in fields(data):
        if number == path[0] and body is not None:
            whole = field(number, rewritten(body, path[1:], change) if path[1:] else change(body))
        out.append(whole)
    return b"".join(out)


def fields(data: bytes) -> Iterator[tuple[int, bytes | None, bytes]]:
    """For each field its number, its body if it has a length, and all its bytes."""
    at = 0
    while at < len(data):
        begin, body = at, None
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                _, at = varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = varint(data, at)
                body, at = data[at : at + size], at + size
            case 5:
                at += 4
            case other:
                raise ValueError(f"wire type {other}")
        if at > len(data):
            raise ValueError("a field that ends early")
        yield tag >> 3, body, data[begin:at]


def field(number: int, body: bytes) -> bytes:
    return as_varint(number << 3 | 2) + as_varint(len(body)) + body


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
