"""What a bundle is: its numbers, its files, and whether they are those of a model that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgemt.bundle import Bundle
from edgemt.manifest import Manifest
from edgemt.verify.expectations import Expected, compared, expected_of
from edgemt.verify.sections import Section, Table

NAME, TITLE = "identity", "What it is"
UNKNOWN = "no expectations known: they are those of HY-MT1.5-1.8B and 7B only"


def of_bundle(bundle: Bundle) -> Section:
    """Every checksum was verified when the bundle was opened."""
    manifest = bundle.manifest
    found = numbers(manifest)
    origin = manifest.provenance.get("checkpoint") or {}
    facts = {
        "bundle": manifest.name,
        "family": manifest.family,
        "languages": ", ".join(map("-".join, manifest.languages)),
        "precision": manifest.precision,
        "target": manifest.target,
        "licence": manifest.licence,
        "made of": ", ".join(f"{key} {value}" for key, value in origin.items() if isinstance(value, str)),
        "made with edgemt": (manifest.provenance.get("tools") or {}).get("edgemt"),
        "digest": f"sha256:{manifest.digest}",
        "bytes": sum(facts["bytes"] for facts in manifest.files.values()),
    }
    files = [(name, facts["bytes"], facts["sha256"]) for name, facts in manifest.files.items()]
    return section(facts, found, files)


def section(facts: Mapping[str, Any], found: Mapping[str, Any], files: list[tuple[str, int, str]]) -> Section:
    """`found`: the model's numbers under the names of expected.json; `files`: name, bytes, SHA-256."""
    expected = expected_of(found)
    told = {**facts, **found, "compared with": expected.name if expected else UNKNOWN}
    made = Section(NAME, TITLE, facts={key: value for key, value in told.items() if value not in (None, {})})
    if expected:
        made.checks = compared(found, expected.values)
        unknown = [key for key in expected.values if found.get(key) is None]
        if unknown:
            made.notes.append(f"not known of this form, and not compared: {', '.join(unknown)}")
        made.notes += [f"expected: {expected.source}", expected.licence]
    made.tables.append(Table("files", ("file", "bytes", "SHA-256"), files))
    return made


def numbers(manifest: Manifest) -> dict[str, Any]:
    """The model's numbers, as far as a bundle has them."""
    model = manifest.model
    keys = [state for state in manifest.states if state.role == "self_kv"]
    sizes = [size for size in keys[0].shape if isinstance(size, int)] if keys else []
    found = {
        "architecture": (manifest.provenance.get("checkpoint") or {}).get("architecture"),
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len({state.input.rpartition(".")[2] for state in keys}) or None,
        "positions in the graph": model.max_positions,
    }
    if manifest.family == "causal" and len(sizes) == 2:
        found |= {
            "num_key_value_heads": sizes[0],
            "head_dim": sizes[1],
            "before": manifest.chat["before"],
            "after": manifest.chat["after"],
            "answer_end": model.eos_id,
        }
    return found


def known(manifest: Manifest) -> Expected | None:
    """What is expected of the model in a bundle."""
    return expected_of(numbers(manifest))
