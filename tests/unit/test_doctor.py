"""`edgemt doctor` on whole and on broken machines: real virtual environments, real damage, real limits."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgemt.doctor import system
from edgemt.pack.own import own_wheel

SITE = Path(sysconfig.get_path("purelib"))
NEEDED = (
    "numpy",
    "onnxruntime",
    "sentencepiece",
    "sentencex",
    "flatbuffers",
    "google",
    "packaging",
    "protobuf",
)
Environment = Callable[..., Path]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(tmp_path: Path, wheel: Path) -> Environment:
    """Makes a virtual environment with edgemt and links to its dependencies, but for those `without`."""

    def make(*, without: tuple[str, ...] = (), bundle: bool = True) -> Path:
        place = tmp_path / "venv"
        venv.create(place, with_pip=False, symlinks=True)
        site = next((place / "lib").glob("python*")) / "site-packages"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        if not bundle:
            shutil.rmtree(site / "edgemt" / "bundles" / "medical-zh-en")
        for entry in SITE.iterdir():
            name = entry.name.removesuffix(".dist-info").removesuffix(".libs").split("-")[0]
            if name in NEEDED and name not in without:
                (site / entry.name).symlink_to(entry)
        return place / "bin" / "python"

    return make


def doctor(python: Path | str, *arguments: str | Path, prepare: Callable[[], None] | None = None,
           **variables: str) -> tuple[int, str]:  # fmt: skip
    """The exit code and what was printed; nothing may go to stderr."""
    command = [str(python), "-P", "-m", "edgemt.cli", "doctor", *map(str, arguments)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ORT_"))}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**clean, **variables}, preexec_fn=prepare, timeout=300
    )
    assert done.stderr == "", done.stderr
    assert "Traceback" not in done.stdout
    return done.returncode, done.stdout


def found(output: str, state: str | None = None) -> dict[str, dict[str, Any]]:
    findings = json.loads(output)["findings"]
    return {f"{f['section']} {f['part']}": f for f in findings if state in (None, f["state"])}


def test_a_whole_machine_translates(environment: Environment, default_bundle: Path) -> None:
    code, output = doctor(environment(), "--json")
    report = json.loads(output)
    assert code == 0 and report["works"] is True
    assert found(output, "broken") == {}
    assert "penicillin" in found(output)["runs bundle medical-zh-en"]["says"]
    assert found(output)["runs onnxruntime"]["state"] == "ok"
    assert found(output)["extras export"]["state"] == "absent"
    assert "pip install 'edgemt[export]'" in found(output)["extras export"]["cure"]


def test_the_page_for_people_names_the_machine_and_the_verdict(environment: Environment) -> None:
    code, output = doctor(environment())
    assert code == 0
    assert output.splitlines()[0].endswith("this machine can translate.")
    assert f"CPython {platform.python_version()}" in output


def test_without_onnxruntime_the_cure_is_the_pinned_package(environment: Environment) -> None:
    python = environment(without=("onnxruntime",))
    code, output = doctor(python, "--json")
    assert code == 1
    finding = found(output, "broken")["packages onnxruntime"]
    assert finding["says"] == "is not installed"
    assert finding["cure"].endswith(f"{python} -m pip install onnxruntime==1.28.0")
    assert "No module named 'onnxruntime'" in found(output)["runs onnxruntime"]["says"]
    assert "cannot translate yet: onnxruntime" in doctor(python)[1]


def test_without_numpy_nothing_breaks_but_the_verdict(environment: Environment) -> None:
    code, output = doctor(environment(without=("numpy",)), "--json")
    assert code == 1
    assert found(output)["packages numpy"]["cure"].endswith("pip install 'numpy<3,>=2.0'")
    assert found(output)["runs sentencepiece"]["state"] == "ok"


def test_a_damaged_package_is_named_with_its_file(environment: Environment) -> None:
    python = environment()
    site = next((python.parent.parent / "lib").glob("python*")) / "site-packages"
    (site / "sentencex").unlink()
    shutil.copytree(SITE / "sentencex", site / "sentencex")
    victim = site / "sentencex" / "__init__.py"
    victim.write_bytes(victim.read_bytes() + b"# one line too many\n")
    code, output = doctor(python, "--json")
    assert code == 1
    finding = found(output, "broken")["packages sentencex"]
    assert "sentencex/__init__.py" in finding["says"] and "--force-reinstall" in finding["cure"]


def test_a_damaged_bundle_is_named_with_its_file(
    environment: Environment, default_bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle, copy)
    data = bytearray((copy / "weights.bin").read_bytes())
    data[1000] ^= 1
    (copy / "weights.bin").write_bytes(data)
    code, output = doctor(environment(), "-b", copy, "--json")
    assert code == 1
    broken = found(output, "broken")
    assert len(broken) == 1
    finding = next(iter(broken.values()))
    assert (
        "weights.bin is damaged" in finding["says"]
        and finding["cure"] == "copy the bundle again, or export it again"
    )
    assert found(output)["runs bundle medical-zh-en"]["state"] == "ok"  # the default is not that one


def test_another_bundle_is_tried_too(environment: Environment, toy_bundle: Path) -> None:
    code, output = doctor(environment(bundle=False), "-b", toy_bundle, "--json")
    assert code == 0
    assert found(output)["runs default bundle"]["state"] == "note"
    assert (
        found(output)[f"runs bundle {json.loads((toy_bundle / 'manifest.json').read_text())['name']}"][
            "state"
        ]
        == "ok"
    )


@pytest.mark.parametrize("name", ["nowhere", "a folder"])
def test_what_is_no_bundle_is_said(environment: Environment, tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    code, output = doctor(environment(), "-b", tmp_path / name, "--json")
    assert code == 1 and len(found(output, "broken")) == 1


def test_without_any_bundle_it_cannot_translate(environment: Environment) -> None:
    code, output = doctor(environment(bundle=False), "--json")
    assert code == 1
    assert "without a default bundle" in found(output, "broken")["runs default bundle"]["says"]


def test_too_little_memory_is_a_finding(environment: Environment) -> None:
    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (130_000_000, 130_000_000))

    code, output = doctor(environment(), "--json", prepare=starve, OPENBLAS_NUM_THREADS="1")
    assert code == 1
    assert found(output)["machine memory"]["state"] == "warning"
    assert any(name.startswith("runs ") for name in found(output, "broken"))


def test_a_release_with_telemetry_is_named(environment: Environment, tmp_path: Path) -> None:
    python = environment(without=("onnxruntime",))
    site = next((python.parent.parent / "lib").glob("python*")) / "site-packages"
    (site / "onnxruntime").symlink_to(SITE / "onnxruntime")
    info = site / "onnxruntime-1.30.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.30.1\n")
    code, output = doctor(python, "--json")
    assert code == 0  # it works, and it is a warning
    finding = found(output)["packages telemetry"]
    assert finding["state"] == "warning" and "1.30.1" in finding["says"]
    assert "ORT_DISABLE_TELEMETRY=1" in finding["cure"] and "onnxruntime==1.28.0" in finding["cure"]
    _, output = doctor(python, "--json", ORT_DISABLE_TELEMETRY="1")
    assert found(output)["packages telemetry"]["state"] == "note"  # switched off for all
    assert "tested with onnxruntime==1.28.0" in found(output)["packages onnxruntime"]["says"]


def test_a_library_that_dies_is_named_and_the_rest_is_still_said(environment: Environment) -> None:
    """An illegal instruction ends a process: the trial's, not the doctor's."""
    python = environment(without=("sentencex",))
    site = next((python.parent.parent / "lib").glob("python*")) / "site-packages"
    (site / "sentencex").mkdir()
    (site / "sentencex" / "__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    )
    code, output = doctor(python, "--json")
    assert code == 1
    assert "SIGILL" in found(output, "broken")["runs sentencex"]["says"]
    assert found(output)["runs numpy"]["state"] == "ok"
    assert found(output)["machine python"]["state"] == "ok"


def test_nothing_that_names_a_person_or_a_host_is_in_it(environment: Environment, tmp_path: Path) -> None:
    home = tmp_path  # the environment lies in the home folder, as a user's does
    _, output = doctor(environment(without=("numpy",)), "--json", "-b", home / "none", HOME=str(home))
    assert str(home) not in output and "~/venv/bin/python" in output
    assert f'"{platform.node()}"' not in output


def test_torch_is_not_imported(edgemt: Any) -> None:
    code = (
        "import sys, contextlib, io\nfrom edgemt.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['doctor'])\n"
        "assert not {'torch', 'transformers', 'openvino', 'onnx', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FACTS: dict[str, Any] = {
    "python": "CPython 3.11.7",
    "bits": 64,
    "abi": "cpython-311-aarch64-linux-gnu",
    "libc": "glibc 2.36",
}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"abi": "cpython-312-aarch64-linux-musl", "libc": None, "python": "CPython 3.12.1"}, "musl"),
        ({"bits": 32, "abi": "cpython-311-arm-linux-gnueabihf"}, "64 bit only"),
        ({"python": "CPython 3.9.2"}, "3.11 or newer"),
        ({"libc": "glibc 2.24"}, "glibc 2.28"),
    ],
)
def test_a_system_without_wheels_is_named(other: dict[str, Any], says: str) -> None:
    finding = system.python({**FACTS, **other})
    assert finding.state == "broken" and says in finding.says and finding.cure
    assert system.python(FACTS).state == "ok"


def test_heat_and_supply_are_read_from_a_pi(tmp_path: Path) -> None:
    files = {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "84300\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "proc/meminfo": "MemTotal: 4045524 kB\nMemAvailable: 90000 kB\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    looked = {finding.part: finding for finding in system.findings(system.look(tmp_path))}
    assert {
        name: looked[name].state for name in ("temperature", "throttling", "governor", "memory")
    } == dict.fromkeys(("temperature", "throttling", "governor", "memory"), "warning")
    assert "power supply" in (looked["throttling"].cure or "")
