"""The devices that a kit can be packed for. A new one is an entry here."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """What decides which wheels a device takes, newest tag first."""

    title: str
    machine: str  # as `uname -m` says
    platforms: tuple[str, ...]  # wheel tags that its C library serves
    pythons: tuple[str, ...]  # of its operating system's releases
    targets: tuple[str, ...]  # bundle targets whose runtime is among edgemt's own dependencies


MANYLINUX_AARCH64 = tuple(f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 26, 24, 17))

# Raspberry Pi OS bookworm has glibc 2.36 and Python 3.11, trixie glibc 2.41 and Python 3.13.
PI = Device(
    "a Raspberry Pi",
    "aarch64",
    (*MANYLINUX_AARCH64, "manylinux2014_aarch64"),
    ("3.11", "3.13"),
    ("onnxruntime",),
)

DEVICES = {
    "pi5": PI._replace(title="a Raspberry Pi 5"),
    "pi4": PI._replace(
        title="a Raspberry Pi 4"
    ),  # the same packages: they choose their kernels by the processor
}
