"""What the report was made with: versions and the machine; nothing that names a person or a host."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from edgemt.bench.facts import machine_facts
from edgemt.verify.sections import Section

NAME, TITLE = "environment", "Environment"
# Beside those of machine_facts, where they are installed.
PACKAGES = (
    "tokenizers",
    "torch",
    "transformers",
    "safetensors",
    "gguf",
    "onnx",
    "optimum",
    "sacrebleu",
    "jinja2",
)


def found(threads: int) -> Section:
    facts = machine_facts(threads)
    versions: dict[str, Any] = facts.pop("versions")
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    made = Section(NAME, TITLE, facts={f"version of {name}": version for name, version in versions.items()})
    made.facts |= {name: value for name, value in facts.items() if value not in (None, [], {})}
    return made
