"""script/pi-report: a real run on this machine, which is no Pi, and what it says where it cannot run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support import ROOT

from edgemt.bench.facts import machine_facts


def pi_report(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "EDGEMT_PYTHON": sys.executable, "HOME": str(home), "USER": "margarethe"}
    command = [ROOT / "script" / "pi-report", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=home, timeout=600)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("margarethe")


@pytest.fixture(scope="module")
def report(home: Path, default_bundle: Path) -> dict[str, str]:
    """The files of a report, by name, and what was printed."""
    done = pi_report(
        "--rounds", "1", "--minutes", "0.05", "--threads", "1", "-o", home / "r.tar.gz", home=home
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in home.iterdir()] == ["r.tar.gz"]
    with tarfile.open(home / "r.tar.gz") as archive:
        for entry in archive.getmembers():
            assert (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")
        files = {
            Path(entry.name).name: (archive.extractfile(entry) or pytest.fail()).read().decode()
            for entry in archive.getmembers()
        }
    return {**files, "printed": done.stdout}


def test_it_checks_measures_and_soaks(report: dict[str, str]) -> None:
    assert set(report) == {"report.html", "doctor.json", "bench-1.json", "soak.json", "printed"}
    assert json.loads(report["doctor.json"])["works"] is True
    bench, soak = json.loads(report["bench-1.json"]), json.loads(report["soak.json"])
    assert bench["settings"]["threads"] == 1 and bench["workload"]["texts"] == 144
    assert soak["load"] == {**soak["load"], "kind": "soak", "soak_minutes": 0.05}
    for data in (bench, soak):
        assert data["kind"] == "measured" and len(data["bundles"]) == 1


def test_a_machine_that_is_no_pi_is_said_at_the_top(report: dict[str, str]) -> None:
    if "Raspberry Pi" in (machine_facts(1)["model"] or ""):
        pytest.skip("this is a Raspberry Pi")
    assert report["printed"].splitlines()[1].startswith("This is not a Raspberry Pi")
    page = report["report.html"]
    assert page.index("This is not a Raspberry Pi") < page.index("<h2>")


def test_the_row_for_the_table_has_as_many_cells_as_the_table(report: dict[str, str]) -> None:
    row = next(line for line in report["printed"].splitlines() if line.startswith("| 20"))
    page = (ROOT / "docs" / "raspberry-pi.md").read_text()
    head = next(line for line in page.splitlines() if line.startswith("| date |"))
    assert row.count("|") == head.count("|")


def test_nothing_names_the_user_or_the_host(report: dict[str, str], home: Path) -> None:
    files = {name: text for name, text in report.items() if name != "printed"}
    host = platform.node()
    for name, text in files.items():
        assert "margarethe" not in text, name
        assert f'"{host}"' not in text and f" {host} " not in text, name


def test_it_needs_nothing_else_to_be_read(report: dict[str, str]) -> None:
    page = report["report.html"]
    assert "http" not in page and "<script" not in page and "src=" not in page


def test_a_bundle_that_does_not_work_is_reported_and_not_measured(tmp_path: Path) -> None:
    done = pi_report("-b", tmp_path / "none", "-o", tmp_path / "r.tar.gz", "--minutes", "0", home=tmp_path)
    assert done.returncode == 1 and "Not everything ran: doctor" in done.stdout
    with tarfile.open(tmp_path / "r.tar.gz") as archive:
        assert sorted(Path(name).name for name in archive.getnames()) == ["doctor.json", "report.html"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--minutes", "-1"], "--minutes"),
        (["--threads", "0"], "--threads"),
        (["--threads", "x"], "--threads"),
        (["-o", "no/such/folder/r.tar.gz"], "cannot be written"),
        (["--wheel", "none.whl"], "no wheel"),
    ],
)
def test_a_wrong_request_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = pi_report(*arguments, home=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("pi-report: ") and says in done.stderr
    assert list(tmp_path.iterdir()) == []
