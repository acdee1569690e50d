"""The bundle on disk: sealed by the workshop, opened and verified on the device.

A bundle is a folder, or the same folder zipped (`NAME.edgemt`). Every file that the manifest lists is checked
against its size and SHA-256 before anything is loaded; files that it does not list are never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import weakref
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from edgemt.errors import EdgemtError, UsageError
from edgemt.manifest import Manifest, digest

if TYPE_CHECKING:
    import zipfile

MANIFEST = "manifest.json"
DEFAULT = Path(__file__).parent / "bundles" / "medical-zh-en"
PREPACKED = "prepacked"  # what `edgemt prepack` puts into a bundle: this machine's, and no part of it
LONGEST_MANIFEST = 64 << 20  # bytes
PIECE = 1 << 20  # bytes in memory at a time
COPY_AGAIN = "copy the bundle again, or export it again"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `directory` holds its files for as long as this object lives."""

    path: Path  # what the user named: a folder or a .edgemt file
    directory: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file that the manifest lists."""
        return self.directory / name


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file under `directory` into the manifest, write manifest.json, and return what it says.

    What `edgemt prepack` made there is left out.
    """
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    files = {
        name: {"sha256": sha256(directory / name), "bytes": (directory / name).stat().st_size}
        for name in names
        if name != MANIFEST and not name.startswith(PREPACKED + "/")
    }
    sealed = dataclasses.replace(manifest, files=files, digest="")
    sealed = dataclasses.replace(sealed, digest=digest(dataclasses.asdict(sealed)))
    partial = directory / f".{MANIFEST}.partial"
    partial.write_text(sealed.to_json(), encoding="utf-8")
    partial.replace(directory / MANIFEST)
    return sealed


def pack(directory: Path, path: Path) -> None:
    """Write the sealed bundle in `directory` as the zip file `path`; equal bundles give equal bytes."""
    import zipfile

    manifest = read_manifest(directory / MANIFEST)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in [MANIFEST, *sorted(manifest.files)]:
                entry = zipfile.ZipInfo(name)  # dated 1980, so that the bytes do not depend on the clock
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.file_size = (directory / name).stat().st_size  # from 2 GB on it is written otherwise
                with (directory / name).open("rb") as source, archive.open(entry, "w") as target:
                    shutil.copyfileobj(source, target, PIECE)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_bundle(path: Path | None = None) -> Bundle:
    """Open and verify a bundle; None is the default bundle that comes with edgemt.

    Raises UsageError if there is no bundle at `path`, EdgemtError if it is damaged, incomplete or too new.
    """
    if path is None:
        if not (DEFAULT / MANIFEST).is_file():
            raise UsageError("this installation comes without a default bundle; name a bundle with -b")
        path = DEFAULT
    path = Path(path)
    try:
        if path.is_dir():
            return open_directory(path)
        if path.is_file():
            return open_archive(path)
    except PermissionError as error:
        raise EdgemtError(
            f"{error.filename or path} cannot be read (permission denied); check its rights"
        ) from None
    except OSError as error:
        raise EdgemtError(
            f"{error.filename or path} cannot be read ({error.strerror}); {COPY_AGAIN}"
        ) from None
    raise UsageError(f"there is no bundle at {path}; check the path, or make one with edgemt export")


def open_directory(path: Path) -> Bundle:
    if not (path / MANIFEST).is_file():
        if (path / "config.json").is_file():
            raise UsageError(
                f"{path} is a checkpoint, not a bundle; run: edgemt export {path} --int8 -o BUNDLE"
            )
        raise UsageError(
            f"{path} is not a bundle (it has no {MANIFEST}); give a folder made by edgemt export"
        )
    manifest = read_manifest(path / MANIFEST)
    for name in manifest.files:
        verify(path, name, manifest)
    return Bundle(path, path, manifest)


def open_archive(path: Path) -> Bundle:
    """Unpack what the manifest lists into a private folder, which is removed with the Bundle or at exit."""
    import tempfile
    import zipfile
    import zlib

    directory = Path(tempfile.mkdtemp(prefix="edgemt-"))  # readable by this user only
    try:
        with zipfile.ZipFile(path) as archive:
            root = archive_root(archive, path)
            unpack(archive, root + MANIFEST, directory / MANIFEST, LONGEST_MANIFEST)
            manifest = read_manifest(directory / MANIFEST, shown=f"{path}:{MANIFEST}")
            for name, facts in manifest.files.items():
                unpack(archive, root + name, directory / name, facts["bytes"])
                verify(directory, name, manifest, shown=f"{path}:{name}")
        bundle = Bundle(path, directory, manifest)
        weakref.finalize(bundle, shutil.rmtree, directory, ignore_errors=True)
        return bundle
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise EdgemtError(f"{path} is not an intact bundle file ({error}); {COPY_AGAIN}") from None
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def archive_root(archive: zipfile.ZipFile, path: Path) -> str:
    """The folder inside the zip that holds the manifest: "" or "NAME/" (a zipped folder)."""
    found = [name for name in archive.namelist() if name.split("/")[-1] == MANIFEST and name.count("/") <= 1]
    if len(found) != 1:
        raise UsageError(
            f"{path} is a zip file but not a bundle (it has no {MANIFEST}); give one made by edgemt export"
        )
    return found[0].removesuffix(MANIFEST)


def unpack(archive: zipfile.ZipFile, member: str, target: Path, size: int) -> None:
    """Write at most `size` + 1 bytes of `member` to `target`; `verify` reports what is absent or too long."""
    if member not in archive.NameToInfo:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as file:
        left = size + 1
        while left and (block := source.read(min(left, PIECE))):
            file.write(block)
            left -= len(block)


def read_manifest(path: Path, shown: str | None = None) -> Manifest:
    """Parse manifest.json; it may name only files in the bundle, and must list every file that it uses."""
    where = shown or str(path)
    try:
        manifest = Manifest.from_json(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError:
        raise EdgemtError(f"{where} is damaged (not UTF-8); {COPY_AGAIN}") from None
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\\" in name or ".." in parts or name != "/".join(parts):
            raise EdgemtError(f"{where} names a file outside the bundle ({name!r}); do not use this bundle")
    used = [graph.file for graph in manifest.graphs.values()] + list(manifest.tokenizer.values())
    for name in used:
        if name not in manifest.files:
            raise EdgemtError(f"{where} uses {name} but has no checksum of it; export the bundle again")
    return manifest


def verify(directory: Path, name: str, manifest: Manifest, shown: str | None = None) -> None:
    """Raise EdgemtError unless the file is there with the size and SHA-256 that the manifest gives."""
    where, facts = shown or str(directory / name), manifest.files[name]
    path = directory / name
    if not path.is_file():
        raise EdgemtError(f"{where} is missing from the bundle; {COPY_AGAIN}")
    size = path.stat().st_size
    if size != facts["bytes"]:
        longer = "longer" if size > facts["bytes"] else "shorter"
        raise EdgemtError(
            f"{where} is {longer} than the {facts['bytes']} bytes that were sealed; {COPY_AGAIN}"
        )
    if sha256(path) != facts["sha256"]:
        raise EdgemtError(f"{where} is damaged (its SHA-256 differs from the manifest's); {COPY_AGAIN}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
