"""The export report: whole and partial data, safe and self-contained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgemt.calibration.gate import Output, judge
from edgemt.errors import EdgemtError
from edgemt.export.report import write_report

VOID = {"meta", "br", "link", "hr", "img"}


class Row:
    source_lang, target_lang = "zh", "en"

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = source, target


class Checker(HTMLParser):
    """Collects tags and text, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    rows = [Row("每次吃三片。", "Take three tablets."), Row("左膝疼。", "My left knee hurts.")]
    fp32 = [Output(row.target, (1, 2)) for row in rows]
    wrong = [fp32[0], Output("My right knee <b>hurts</b>.", (1, 3))]
    latency = {"p50_ms": 12.0, "p90_ms": 20.0, "p99_ms": 31.5, "ratio": 0.52}
    latency |= {"ratio_low": 0.48, "ratio_high": 0.55}
    return {
        "name": "medical <zh-en>",
        "created": "2026-01-01T00:00:00Z",
        "command": "edgemt export ckpt --int8 -o out",
        "passed": True,
        "chosen": "int8-static",
        "choice": "int8-static is the fastest.",
        "reasons": ["one & two"],
        "source": {"checkpoint": "student", "parameters": 9_480_000, "training": {"mode": "bf16"}},
        "stages": [
            {"name": "parity", "seconds": 3.2, "peak_rss_mb": 640},
            {"name": "gate", "seconds": 200.0},
        ],
        "parity": {
            "max_abs_error": 1e-5,
            "tolerance": 6e-4,
            "logit_std": 6.1,
            "sentences": 16,
            "tokens": 300,
            "equal": 299,
            "excused": 1,
            "passed": True,
        },
        "variants": {
            "fp32": {"bytes": 38_000_000, "gate": None, "latency": {**latency, "ratio": 1.0}},
            "int8-static": {
                "bytes": 10_000_000,
                "gate": judge(rows, fp32, wrong).to_json(),
                "latency": latency,
            },
            "int8-dynamic": {
                "bytes": 10_100_000,
                "gate": judge(rows, fp32, fp32).to_json(),
                "latency": None,
            },
        },
        "latency": {"threads": 1, "rounds": 5},
        "calibration": {"observer": "mse", "sentences": 2000, "resumed": False},
        "activations": {
            f"decoder.layers.{i}.fc2.input": {
                "role": "step",
                "low": -1.0,
                "high": 2.0,
                "sqnr_db": None if i == 3 else 20.0 + i,
            }
            for i in range(40)
        },
        "samples": [
            {"direction": "zh-en", "source": "疼。", "reference": "It hurts.", "outputs": {"fp32": "Pain."}}
        ],
        "machine": {"cores": 2, "memory": None},
        "provenance": {"torch": "2.13.0"},
    }


def checked(directory: Path) -> Checker:
    page = Checker()
    page.feed((directory / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_page_shows_what_was_measured(data: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, data)
    page = checked(tmp_path)
    text = re.sub(r"\s+", " ", page.text)
    for expected in (
        "medical <zh-en>: export report",
        "int8-static (chosen)",
        "38.00 MB",
        "0.52 [0.48, 0.55]",
        "9,480,000",
        "left to right",
        "My right knee <b>hurts</b>.",
        "decoder.layers.0.fc2.input",
        "39 tensors",
        "3.3 min",
        "one & two",
        "299 of 300",
    ):
        assert expected in text, expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_page_is_self_contained(data: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, data)
    page = checked(tmp_path)
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert all(address.startswith("#") for address in page.addresses)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import", html)
    assert "width=device-width" in html and "@media print" in html


def test_the_json_holds_everything_and_names_its_format(data: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, data)
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert document.pop("format") == "edgemt-export-report"
    assert document.pop("format_version") == "1.0"
    assert document == data


def test_the_same_data_give_the_same_page(data: dict[str, Any], tmp_path: Path) -> None:
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, data)
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_any_section_may_be_missing(data: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path, {"name": "bare"})
    assert "bare: export report" in checked(tmp_path).text
    for key in data.keys() - {"name"}:
        write_report(tmp_path, {k: v for k, v in data.items() if k != key})
        checked(tmp_path)


def test_an_unwritable_directory_is_one_sentence(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EdgemtError, match="cannot be written"):
        write_report(tmp_path / "none", {"name": "x"})
