"""The report as one HTML file that needs nothing else, no script, no request. Needs jinja2 (extra report)."""

from __future__ import annotations

import json
from typing import Any

import jinja2

VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}  # control characters: ␀ ␁ …


def page(data: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgemt.verify", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template("page.html").render(report=data)


def plain(value: Any) -> str:
    """A value as a reader wants it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 1_000_000 else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.translate(VISIBLE)
