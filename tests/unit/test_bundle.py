"""A bundle opens only if every byte is what was sealed, and an archive writes only where it should."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from edgemt.bundle import MANIFEST, Bundle, open_bundle, pack, read_manifest, seal
from edgemt.errors import EdgemtError, UsageError
from edgemt.manifest import digest


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    pack(bundle, tmp_path / "toy.edgemt")
    return tmp_path / "toy.edgemt"


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.file(name).read_bytes() for name in bundle.manifest.files}


def edit(bundle: Path, **changes: object) -> None:
    """Change the manifest and give it a valid digest again, as an attacker or a later version would."""
    data = json.loads((bundle / MANIFEST).read_text()) | changes
    (bundle / MANIFEST).write_text(json.dumps(data | {"digest": digest(data)}))


def test_folder_and_archive_are_the_same_bundle(bundle: Path, archive: Path) -> None:
    folder, zipped = open_bundle(bundle), open_bundle(archive)
    assert folder.manifest == zipped.manifest
    assert contents(folder) == contents(zipped)
    on_disk = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert set(folder.manifest.files) == on_disk - {MANIFEST}


def test_sealing_again_changes_nothing(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    sealed = seal(bundle, read_manifest(bundle / MANIFEST))
    assert (bundle / MANIFEST).read_bytes() == before
    assert sealed == read_manifest(bundle / MANIFEST)


def test_archives_of_one_bundle_are_equal(bundle: Path, archive: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "again.edgemt")
    assert (tmp_path / "again.edgemt").read_bytes() == archive.read_bytes()


def test_a_large_file_goes_through_memory_in_pieces(bundle: Path, tmp_path: Path) -> None:
    with (bundle / "large.bin").open("wb") as file:
        file.truncate(64 << 20)
    seal(bundle, read_manifest(bundle / MANIFEST))
    tracemalloc.start()
    try:
        pack(bundle, tmp_path / "large.edgemt")
        opened = open_bundle(tmp_path / "large.edgemt")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert opened.file("large.bin").stat().st_size == 64 << 20


def test_an_archive_is_unpacked_privately_and_removed(archive: Path) -> None:
    opened = open_bundle(archive)
    directory = opened.directory
    assert directory.stat().st_mode & 0o077 == 0
    del opened
    gc.collect()
    assert not directory.exists()


def test_a_zipped_folder_opens_too(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "folder.zip"
    with zipfile.ZipFile(path, "w") as file:
        for found in bundle.rglob("*"):
            file.write(found, Path("my-bundle") / found.relative_to(bundle))
    assert contents(open_bundle(path)) == contents(open_bundle(bundle))


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_in_any_file_is_found_and_named(bundle: Path, where: float) -> None:
    for name in [*read_manifest(bundle / MANIFEST).files, MANIFEST]:
        whole = (bundle / name).read_bytes()
        damaged = bytearray(whole)
        damaged[int(where * (len(damaged) - 1))] ^= 0x20
        (bundle / name).write_bytes(damaged)
        if name == MANIFEST and json_or_none(damaged) == json.loads(whole):
            continue  # white space of the manifest says nothing
        with pytest.raises(EdgemtError, match=name):
            open_bundle(bundle)
        (bundle / name).write_bytes(whole)


def json_or_none(text: bytes | bytearray) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_every_byte_of_the_manifest_is_covered(bundle: Path) -> None:
    whole = (bundle / MANIFEST).read_bytes()
    for position in range(0, len(whole), 7):
        damaged = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        (bundle / MANIFEST).write_bytes(damaged)
        if json_or_none(damaged) != json.loads(whole):
            with pytest.raises(EdgemtError):
                open_bundle(bundle)


def test_a_flipped_byte_in_an_archive_never_gives_other_content(archive: Path, bundle: Path) -> None:
    whole, good = archive.read_bytes(), contents(open_bundle(bundle))
    for position in range(0, len(whole), len(whole) // 60):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            found = contents(open_bundle(archive))
        except EdgemtError:
            continue
        assert found == good  # a date or another field of the zip that says nothing


def test_a_truncated_archive(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(EdgemtError, match="not an intact bundle file"):
        open_bundle(archive)


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "step.onnx").unlink()
    with pytest.raises(EdgemtError, match=r"step\.onnx is missing"):
        open_bundle(bundle)


def test_a_shortened_file(bundle: Path) -> None:
    file = bundle / "step.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EdgemtError, match=r"step\.onnx is shorter"):
        open_bundle(bundle)


def test_unknown_files_and_keys_of_a_later_minor_version_are_ignored(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    edit(bundle, format_version="1.7", novelty={"of": "1.7"})
    assert "notes.txt" not in open_bundle(bundle).manifest.files


def test_a_newer_format(bundle: Path) -> None:
    edit(bundle, format_version="2.0")
    with pytest.raises(EdgemtError, match=r"bundle format 2\.0, and this edgemt reads 1\.0; upgrade"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "", "./a", "a//b"])
def test_names_that_lead_out_of_the_bundle(bundle: Path, name: str, tmp_path: Path) -> None:
    manifest = read_manifest(bundle / MANIFEST)
    edit(bundle, files=manifest.files | {name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(EdgemtError, match="outside the bundle"):
        open_bundle(bundle)
    path = tmp_path / "evil.edgemt"
    with zipfile.ZipFile(path, "w") as file:
        file.write(bundle / MANIFEST, MANIFEST)
        if name:
            file.writestr(name, "x")
    with pytest.raises(EdgemtError, match="outside the bundle"):
        open_bundle(path)
    assert not (tmp_path / "outside").exists()


def test_a_file_that_unpacks_to_more_than_was_sealed(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb.edgemt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for found in bundle.rglob("*.*"):
            name = found.relative_to(bundle).as_posix()
            file.writestr(name, found.read_bytes() + (b"\0" * 50_000_000 if name == "step.onnx" else b""))
    with pytest.raises(EdgemtError, match=r"step\.onnx is longer"):
        open_bundle(path)


def test_a_graph_without_checksum(bundle: Path) -> None:
    files = read_manifest(bundle / MANIFEST).files
    edit(bundle, files={name: facts for name, facts in files.items() if name != "step.onnx"})
    with pytest.raises(EdgemtError, match=r"uses step\.onnx but has no checksum"):
        open_bundle(bundle)


def test_what_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="is not a bundle"):
        open_bundle(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is a checkpoint, not a bundle; run: edgemt export"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST).write_text('{"name": "an app"}')
    with pytest.raises(EdgemtError, match="not the manifest of an edgemt bundle"):
        open_bundle(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe")
    with pytest.raises(EdgemtError, match="not UTF-8"):
        open_bundle(tmp_path)
    (tmp_path / "text.edgemt").write_text("hello")
    with pytest.raises(EdgemtError, match="not an intact bundle file"):
        open_bundle(tmp_path / "text.edgemt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("hello.txt", "hello")
    with pytest.raises(UsageError, match="not a bundle"):
        open_bundle(tmp_path / "other.zip")


def test_a_failed_seal_leaves_the_old_manifest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle / MANIFEST).read_bytes()
    manifest = dataclasses.replace(read_manifest(bundle / MANIFEST), name="half")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        seal(bundle, manifest)
    assert (bundle / MANIFEST).read_bytes() == before
