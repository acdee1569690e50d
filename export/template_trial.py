"""A chat template is a program of its author: it is rendered in a process of its own first, with limits.

Jinja's sandbox keeps it from Python's inside and from files, and lets it run for ever or fill the memory.
What passes here is rendered again by transformers, whose environment this one is like.

This file is also that process: it takes {"template", "chats"} on its standard input.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

SECONDS = 3  # of processor time, for all chats
MEMORY = 512 << 20  # bytes of address space
LONGEST = 1 << 16  # characters of a template, and of what it says to a message
PATIENCE = 120  # seconds, on a machine at work
REFUSED = 3  # exit codes
FAILED = 4


def problem(template: str, chats: Sequence[Any], tokens: dict[str, str]) -> str | None:
    """What is wrong with a template that is given these chats (messages, add_generation_prompt); or None.

    `tokens`: the tokenizer's special tokens by name, which a template may read.
    """
    if len(template) > LONGEST:
        return f"has {len(template)} characters, and none needs more than {LONGEST}"
    task = json.dumps({"template": template, "chats": list(chats), "tokens": tokens})
    try:
        # -P: this file's folder has modules named like Python's own
        done = subprocess.run(
            [sys.executable, "-P", str(Path(__file__))],
            input=task.encode(),
            capture_output=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "does not come to an end"
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode == 0:
        return None
    if done.returncode == REFUSED:
        return f"does what a sandbox forbids ({said})"
    if done.returncode == FAILED:
        return f"does not work ({said})"
    return f"takes more than {SECONDS} s or {MEMORY >> 20} MB for a short message"


def main() -> int:
    import jinja2
    import jinja2.ext
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    task = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %}, which marks answers for training."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **options)
    environment.globals |= {"raise_exception": fail, "strftime_now": lambda format: "2026-01-01"}
    try:
        template = environment.from_string(task["template"])
        for messages, generate in task["chats"]:
            length = 0
            given = {
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": generate,
            }
            for piece in template.generate(**given, **task["tokens"]):
                length += len(piece)
                if length > LONGEST:
                    print(f"it says {length} characters and more to a short message")
                    return FAILED
    except SecurityError as error:
        print(str(error).split("\n")[0][:200])
        return REFUSED
    except MemoryError:
        return 1
    except Exception as error:  # whatever the template's author wrote
        print(str(error).split("\n")[0][:200] or type(error).__name__)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
