"""The installer of a kit, run as its user runs it, on this machine: install, upgrade, roll back, refuse."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from kits import installer, pack, reseal, tree, unpack

import edgemt


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    return unpack(pack(folder / "usb.tar"), folder / "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, kit: Path, toy_bundle: Path) -> Path:
    """Another version of the kit: with a bundle of its own."""
    folder = tmp_path_factory.mktemp("other")
    return unpack(pack(folder / "usb.tar", "--wheels", kit / "wheels", "-b", toy_bundle), folder / "two")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, kit: Path) -> Path:
    """A prefix, in a folder with a space in its name, with the kit installed; tests leave it as it is."""
    prefix = tmp_path_factory.mktemp("some where") / "edgemt"
    done = installer(kit, "--prefix", prefix)
    assert done.returncode == 0, done.stderr
    return prefix


@pytest.fixture
def copy(installed: Path, tmp_path: Path) -> Path:
    """A copy of the installation: each version's folder can be moved as it is."""
    return Path(shutil.copytree(installed, tmp_path / "prefix", symlinks=True))


@pytest.fixture
def spoiled(kit: Path, tmp_path: Path) -> Path:
    """A copy of the kit to be spoiled."""
    return Path(shutil.copytree(kit, tmp_path / "spoiled"))


def translate(prefix: Path, *arguments: str) -> str:
    command = [prefix / "current" / "bin" / "edgemt", "translate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("install.sh: ")
    return done.stderr


def test_the_installed_kit_translates(installed: Path) -> None:
    assert "penicillin" in translate(installed, "我对青霉素过敏。")
    done = subprocess.run(
        [installed / "current/bin/edgemt", "doctor", "--json"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["works"]
    names = {path.name for path in installed.iterdir()}
    assert names == {".lock", "current", (installed / "current").readlink().name}


def test_an_environment_of_the_user_does_not_reach_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')\n")
    done = subprocess.run(
        [installed / "current" / "bin" / "edgemt", "translate", "我头疼。"],
        capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0 and "head" in done.stdout


def test_it_answers_lines_on_a_socket_as_the_unit_runs_it(installed: Path) -> None:
    ours, theirs = socket.socketpair()
    command = [installed / "current" / "bin" / "edgemt", "translate"]
    with ours, subprocess.Popen(command, stdin=theirs, stdout=theirs) as child:
        theirs.close()
        file = ours.makefile("rw", encoding="utf-8")
        for _ in range(2):  # the first answer comes while the connection is open
            file.write("我对青霉素过敏。\n")
            file.flush()
            assert "penicillin" in file.readline()
        ours.shutdown(socket.SHUT_WR)
        assert file.readline() == ""
        assert child.wait(60) == 0


def test_a_second_run_changes_nothing(copy: Path, kit: Path) -> None:
    before = tree(copy)
    done = installer(kit, "--prefix", copy)
    assert done.returncode == 0 and "already" in done.stdout
    assert tree(copy) == before


def test_a_second_run_repairs_what_is_damaged(copy: Path, kit: Path) -> None:
    before = tree(copy)
    victim = next(copy.glob("*/lib/python*/site-packages/edgemt/search.py"))
    victim.write_text("raise SystemExit('damaged')\n")
    done = installer(kit, "--prefix", copy)
    assert done.returncode == 0, done.stderr
    assert {k: v for k, v in tree(copy).items() if not k.endswith(".pyc")} == {
        k: v for k, v in before.items() if not k.endswith(".pyc")
    }
    assert "penicillin" in translate(copy, "我对青霉素过敏。")


def spoil(kit: Path, how: str) -> str:
    """Spoil the kit; returns the name of the file that has to be complained of."""
    name = {"wheel": next(p.name for p in (kit / "wheels").glob("numpy-*"))}.get(how, how)
    path = kit / "wheels" / name if how == "wheel" else kit / how
    if how == "README.txt":
        path.unlink()
    elif how == "SHA256SUMS":
        path.write_text("")
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    return name


@pytest.mark.parametrize("how", ["wheel", "README.txt", "SHA256SUMS", "manifest.json", "install.py"])
@pytest.mark.parametrize("upgrade", [False, True], ids=["fresh", "upgrade"])
def test_a_spoiled_kit_changes_nothing(
    spoiled: Path, installed: Path, tmp_path: Path, how: str, upgrade: bool
) -> None:
    prefix = installed if upgrade else tmp_path / "prefix"
    before = tree(prefix)
    name = spoil(spoiled, how)
    message = refused(installer(spoiled, "--prefix", prefix))
    assert name in message and "nothing was changed" in message
    assert tree(prefix) == before and prefix.exists() == upgrade


@pytest.mark.parametrize("how", ["wheel", "README.txt", "manifest.json"])
def test_the_digests_are_checked_without_the_shell_too(spoiled: Path, tmp_path: Path, how: str) -> None:
    name = spoil(spoiled, how)
    command = ["python3", "-I", spoiled / "install.py", "--prefix", tmp_path / "prefix"]
    assert name in refused(subprocess.run(command, capture_output=True, text=True))
    assert not (tmp_path / "prefix").exists()


def test_an_upgrade_keeps_the_version_before_and_can_be_taken_back(
    copy: Path, other: Path, toy_bundle: Path
) -> None:
    first = (copy / "current").readlink()
    done = installer(other, "--prefix", copy)
    assert done.returncode == 0, done.stderr
    second = (copy / "current").readlink()
    assert second != first and (copy / "previous").readlink() == first
    name = json.loads((toy_bundle / "manifest.json").read_text())["name"]
    assert translate(copy, "-b", str(copy / "current" / "bundles" / name), "我头疼。").strip()

    for expected in (first, second):  # back, and forward again
        assert installer(other, "--prefix", copy, "--rollback").returncode == 0
        assert (copy / "current").readlink() == expected
        assert "penicillin" in translate(copy, "我对青霉素过敏。")

    older = shutil.copytree(copy / first, copy / "0.0.1-abc", symlinks=True)
    done = installer(other, "--prefix", copy)
    assert "0.0.1-abc was removed" in done.stdout and not Path(older).exists()
    assert (copy / "previous" / "bin" / "edgemt").exists()


def test_there_is_nothing_to_go_back_to(copy: Path, kit: Path, tmp_path: Path) -> None:
    before = tree(copy)
    assert "no earlier version" in refused(installer(kit, "--prefix", copy, "--rollback"))
    assert tree(copy) == before
    refused(installer(kit, "--prefix", tmp_path / "nowhere", "--rollback"))
    assert not (tmp_path / "nowhere").exists()


def test_a_version_that_does_not_work_never_becomes_the_current_one(copy: Path, spoiled: Path) -> None:
    """Its digests are right and its content is not: it is tried before the switch."""
    wheel = next((spoiled / "wheels").glob("sentencex-*"))
    with zipfile.ZipFile(wheel) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".so")}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)
    reseal(spoiled)
    before = tree(copy)
    message = refused(installer(spoiled, "--prefix", copy))
    assert "sentencex" in message and "nothing was changed" in message
    assert tree(copy) == before


def test_a_wheel_that_reaches_outside_is_refused(spoiled: Path, tmp_path: Path) -> None:
    wheel = next((spoiled / "wheels").glob("sentencex-*"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("../../../../../escaped.txt", "out")
    reseal(spoiled)
    assert "outside" in refused(installer(spoiled, "--prefix", tmp_path / "prefix"))
    assert not list(tmp_path.rglob("escaped.txt")) and not (tmp_path / "prefix").exists()


def test_a_kit_for_another_machine_is_refused(spoiled: Path, tmp_path: Path) -> None:
    manifest = json.loads((spoiled / "manifest.json").read_text())
    manifest.update(machine="riscv64", title="a VisionFive 2")
    (spoiled / "manifest.json").write_text(json.dumps(manifest))
    reseal(spoiled)
    message = refused(installer(spoiled, "--prefix", tmp_path / "prefix"))
    assert "a VisionFive 2 (riscv64)" in message
    assert not (tmp_path / "prefix").exists()


def test_uninstall_removes_what_was_installed_and_nothing_else(copy: Path, kit: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    assert installer(kit, "--prefix", copy, "--uninstall").returncode == 0
    assert [path.name for path in copy.iterdir()] == ["notes.txt"]
    (copy / "notes.txt").unlink()
    assert "no edgemt under" in refused(installer(kit, "--prefix", copy, "--uninstall"))


def test_a_place_that_cannot_be_written_is_one_sentence(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused(installer(kit, "--prefix", tmp_path / "file" / "edgemt"))
    assert "--prefix DIR" in message


def test_the_service_is_put_in_place_follows_the_version_and_goes(
    copy: Path, kit: Path, other: Path, toy_bundle: Path, tmp_path: Path
) -> None:
    """With a stand-in for systemctl that writes down what it is asked: there is no systemd in a test."""
    units, asked = tmp_path / "units", tmp_path / "asked"
    units.mkdir()
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    systemctl.chmod(0o755)

    def run(folder: Path, *arguments: str) -> None:
        code = (
            "import runpy, sys, pathlib, os; os.geteuid = lambda: 0; sys.argv = sys.argv[1:];"
            "names = runpy.run_path(sys.argv[0], run_name='installer');"
            f"names['main'].__globals__['UNITS'] = pathlib.Path({str(units)!r}); sys.exit(names['main']())"
        )
        command = ["python3", "-c", code, folder / "install.py", "--prefix", copy, *arguments]
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
        assert done.returncode == 0, done.stderr

    run(kit, "--service")
    unit = (units / "edgemt@.service").read_text()
    assert f"ExecStart={copy}/current/bin/edgemt translate\n" in unit and (units / "edgemt.socket").exists()
    assert asked.read_text().splitlines() == ["daemon-reload", "enable --now edgemt.socket"]
    run(other)  # an upgrade takes the unit along, which names the new bundle
    name = json.loads((toy_bundle / "manifest.json").read_text())["name"]
    assert f"translate -b {copy}/current/bundles/{name}\n" in (units / "edgemt@.service").read_text()
    run(other, "--rollback")
    assert (units / "edgemt@.service").read_text() == unit
    run(other, "--uninstall")
    assert list(units.iterdir()) == [] and not copy.exists()
    assert "disable --now edgemt.socket" in asked.read_text()


def test_no_service_without_systemd(kit: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in ("sh", "sha256sum", "sed", "head", "dirname", "python3"):
        (programs / tool).symlink_to(sys.executable if tool == "python3" else str(shutil.which(tool)))
    done = installer(kit, "--prefix", tmp_path / "prefix", "--service", PATH=str(programs))
    assert "--service needs root and systemd" in refused(done)
    assert not (tmp_path / "prefix").exists()


def test_one_installer_at_a_time(copy: Path, other: Path) -> None:
    import fcntl

    before = tree(copy)
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another installation" in refused(installer(other, "--prefix", copy))
    assert tree(copy) == before


def test_a_bundle_larger_than_memory_goes_through_it_in_pieces(tmp_path: Path) -> None:
    install = runpy.run_path(str(Path(edgemt.__file__).parent / "pack" / "kit" / "install.py"))
    (tmp_path / "large.bin").write_bytes(bytes(48 << 20))
    with zipfile.ZipFile(tmp_path / "large.edgemt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "large.bin", "large.bin")
    tracemalloc.start()
    try:
        install["unpack"](tmp_path / "large.edgemt", tmp_path / "out")
        same = install["sha256"](tmp_path / "out" / "large.bin") == install["sha256"](tmp_path / "large.bin")
        assert same and tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
