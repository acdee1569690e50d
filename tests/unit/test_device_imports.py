"""The device side needs no workshop package, no workshop module, and no network."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

WORKSHOP = ("edgemt.export", "edgemt.calibration", "edgemt.training")
HEAVY = ("torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors", "tokenizers")
DEVICE = {"numpy", "onnxruntime", "sentencepiece", "sentencex", "edgemt"}
# Files with an optional feature: the latency report as a page, decoder-only models, taps for calibration.
EXTRAS = {
    "edgemt/bench/page.py": {"jinja2", "matplotlib"},
    "edgemt/bench/compare_page.py": {"matplotlib"},
    "edgemt/bench/command.py": {"jinja2", "matplotlib"},
    "edgemt/bpe.py": {"tokenizers"},
    "edgemt/verify/page.py": {"jinja2"},
    "runtimes/ort_graph.py": {"onnx"},
}

WITHOUT_WORKSHOP = """
import sys

class Absent:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if any(name == absent or name.startswith(absent + ".") for absent in self.names):
            raise ModuleNotFoundError(f"{{name}} is not on the device", name=name)

sys.meta_path.insert(0, Absent())
for name in Absent.names:
    assert name not in sys.modules
"""

WITHOUT_NETWORK = """
import sys

def hook(event, arguments):
    if event.startswith("socket.") and event != "socket.__new__":
        raise SystemExit(f"network: {event} {arguments}")

sys.addaudithook(hook)
"""

TRANSLATE = """
import edgemt
translator = edgemt.load({bundle!r})
assert translator.translate("我头疼。", glossary={{"头": "head"}}, beam=2)
assert translator.translate_many(["我头疼。", "好。"], "zh", "en")
from edgemt.cli import main
assert main(["inspect", {bundle!r}]) == 0
"""


def run(code: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, **environment}, timeout=120
    )
    assert result.returncode == 0, result.stderr.decode()


def test_the_device_runs_without_the_workshop(toy_bundle: Path) -> None:
    run(WITHOUT_WORKSHOP.format(names=(*WORKSHOP, *HEAVY)) + TRANSLATE.format(bundle=str(toy_bundle)))


def test_the_default_bundle_runs_without_the_workshop(default_bundle: Path) -> None:
    run(WITHOUT_WORKSHOP.format(names=(*WORKSHOP, *HEAVY)) + TRANSLATE.format(bundle=str(default_bundle)))


def test_no_connection_is_attempted(toy_bundle: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    run(WITHOUT_NETWORK + TRANSLATE.format(bundle=str(toy_bundle)), **home)
    assert list(tmp_path.iterdir()) == []  # and nothing is kept to be sent later


def test_no_system_call_opens_a_connection(toy_bundle: Path, tmp_path: Path) -> None:
    """The same below Python, where a library's own code would show."""
    trace = tmp_path / "trace"
    try:
        subprocess.run(
            ["strace", "-f", "-e", "trace=socket,connect,sendto", "-o", str(trace), sys.executable, "-c",
             TRANSLATE.format(bundle=str(toy_bundle))],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    except subprocess.CalledProcessError as error:
        if b"ptrace" in error.stderr.lower():
            pytest.skip("strace may not trace here")
        raise
    assert "AF_INET" not in trace.read_text()


def test_import_edgemt_is_light() -> None:
    run("import edgemt, sys; assert not {'numpy', 'onnxruntime', 'sentencepiece'} & set(sys.modules)")


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["edgemt", "runtimes"])
def test_the_device_never_imports_the_workshop(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        extras = EXTRAS.get(place, set())
        for module in imports(path):
            assert not module.startswith(WORKSHOP), f"{place} imports {module}, which is not on the device"
            top = module.split(".")[0]
            allowed = DEVICE | set(sys.stdlib_module_names) | extras
            assert top in allowed, f"{place} imports {module}, which the device does not have"
