"""Working directories: packed when a job is submitted, kept by content, unpacked where the job runs.

A package is a `.tar.gz` named by the SHA-256 of its bytes. Equal folders give equal bytes: names are sorted,
times and owners left out, and of the permissions only the owner's right to execute is kept.

What is left out: `.git`, `.venv` and `__pycache__` wherever they are, and what the `.gitignore` and
`.rayschedignore` files in the folder say. Both are read as git reads them, each for the folder that it lies
in and those below; in one folder `.rayschedignore` has the last word, so that it can also bring back what git
ignores (`!data/`).
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

from raysched.errors import FileMissing, SpecError, StorageError
from raysched.ignore import Rules

LIMIT = 512 * 2**20
"""Bytes that the files of a working directory may have together."""

KEPT = 3600.0
"""Seconds for which a package stays although no job names it: its job may be about to be submitted."""

_ALWAYS_OUT = frozenset({".git", ".venv", "__pycache__"})
_IGNORE_FILES = (".gitignore", ".rayschedignore")
_CHUNK = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMPRESSION = 3
"""Of 9: half the time of the usual 6 for a few per cent more bytes."""


def pack(folder: Path, archive: Path, limit: int = LIMIT) -> str:
    """Pack `folder` into the file `archive` and return its digest.

    Raises FileMissing where there is no such folder, SpecError for what can't be packed (a link that leaves
    the folder, a socket, more than `limit` bytes), and StorageError where the archive can't be written.
    """
    entries = _checked(folder, limit)
    with _storing(archive), archive.open("wb") as file:
        sink = _Hashing(file)
        # Neither a name nor a time goes into the gzip header: equal folders, equal bytes.
        with (
            gzip.GzipFile("", "wb", _COMPRESSION, sink, mtime=0) as packed,  # type: ignore[arg-type]
            tarfile.open(mode="w", fileobj=packed, format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            for entry in entries:
                _add(tar, entry)
    return sink.digest.hexdigest()


def check(folder: Path, limit: int = LIMIT) -> None:
    """Raise what `pack` would raise for a folder that can't be packed."""
    _checked(folder, limit)


def _checked(folder: Path, limit: int) -> list[_Entry]:
    """All that is packed, in order. Raises FileMissing and SpecError."""
    if not folder.is_dir():
        raise FileMissing(f"working_dir: {folder} is not a folder")
    entries = sorted(_entries(folder), key=lambda entry: os.fsencode(entry.name))
    _check_size(folder, entries, limit)
    return entries


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file, folder or link to pack; `name` is its path in the package, `target` where a link leads."""

    name: str
    path: Path
    status: os.stat_result
    target: str | None = None


_Above = tuple[tuple[str, Rules], ...]
"""The rules of a folder and of those around it, the nearest first, each with its path ("" or "a/b/")."""


def _entries(folder: Path) -> Iterator[_Entry]:
    """All that is packed, in no order."""
    pending: list[tuple[Path, str, _Above]] = [(folder, "", ())]
    while pending:
        here, base, above = pending.pop()
        try:
            rules = ((base, _read_rules(here)), *above)
            found = list(os.scandir(here))
        except OSError as error:
            _unreadable(Path(error.filename or here), error)
        for item in found:
            name, is_folder = base + item.name, item.is_dir(follow_symlinks=False)
            if item.name in _ALWAYS_OUT or _ignored(name, is_folder, rules):
                continue
            yield _entry(folder, Path(item.path), name)
            if is_folder:
                pending.append((Path(item.path), f"{name}/", rules))


def _read_rules(folder: Path) -> Rules:
    lines: list[str] = []
    for name in _IGNORE_FILES:
        with contextlib.suppress(FileNotFoundError):
            text = (folder / name).read_text(encoding="utf-8-sig", errors="surrogateescape")
            lines += text.split("\n")
    return Rules.read(lines)


def _ignored(name: str, is_folder: bool, rules: _Above) -> bool:
    """What the nearest folder whose rules say something about it says."""
    verdicts = (found.verdict(name[len(base) :], is_folder) for base, found in rules)
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _entry(root: Path, path: Path, name: str) -> _Entry:
    try:
        status = path.lstat()
    except OSError as error:
        _unreadable(path, error)
    if stat.S_ISLNK(status.st_mode):
        return _Entry(name, path, status, _target(root, path, name))
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise SpecError(f"working_dir: {path} is no file, folder or link: list it in .rayschedignore")
    return _Entry(name, path, status)


def _target(root: Path, link: Path, name: str) -> str:
    """Where a link leads, relative to it, so that it leads there in every copy of the folder."""
    inside, end = os.path.realpath(root), os.path.realpath(link)
    if not Path(end).is_relative_to(inside):
        raise SpecError(
            f"working_dir: the link {link} leads out of the folder, to {end}: "
            "put a copy in its place, or list it in .rayschedignore"
        )
    target = os.readlink(link)
    # A path from the package's top that begins with `..` or `/` leads elsewhere on another machine.
    if os.path.normpath(os.path.join(os.path.dirname(name), target)).startswith(("..", "/")):
        return os.path.relpath(end, os.path.realpath(link.parent))
    return target


def _check_size(folder: Path, entries: list[_Entry], limit: int) -> None:
    files = [entry for entry in entries if stat.S_ISREG(entry.status.st_mode)]
    total = sum(entry.status.st_size for entry in files)
    if total <= limit:
        return
    sizes: dict[str, int] = {}
    for entry in files:
        top = entry.name.split("/")[0]
        sizes[top] = sizes.get(top, 0) + entry.status.st_size
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
    raise SpecError(
        f"working_dir: {folder} holds {_mebibytes(total)}, more than {_mebibytes(limit)}; most is in "
        + ", ".join(f"{name} ({_mebibytes(size)})" for name, size in largest)
        + ": list in .rayschedignore what the job does not need"
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _add(tar: tarfile.TarFile, entry: _Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    executable = entry.status.st_mode & stat.S_IXUSR
    info.mode = 0o755 if executable or stat.S_ISDIR(entry.status.st_mode) else 0o644
    if entry.target is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.target, 0o777
        tar.addfile(info)
    elif stat.S_ISDIR(entry.status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    else:
        info.size = entry.status.st_size
        _add_file(tar, info, entry.path)


def _add_file(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    """Add as many bytes as were counted; a file that grows meanwhile, such as a log, does not matter."""
    try:
        with path.open("rb") as file:
            tar.addfile(info, file)
    except OSError as error:
        _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> NoReturn:
    why = error.strerror or "it changed while it was read"
    raise SpecError(f"working_dir: {path} can't be packed ({why}): list it in .rayschedignore") from None


class _Hashing(io.RawIOBase):
    """Writes on to a file and computes the digest of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        with _storing(Path(self._file.name)):
            return self._file.write(data)


@contextlib.contextmanager
def _storing(path: Path) -> Generator[None, None, None]:
    """Whoever writes to `path` in here raises StorageError where that fails."""
    try:
        yield
    except OSError as error:
        hint = ": free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StorageError(f"{path} can't be written ({error.strerror or error}){hint}") from None


def unpack(archive: Path, into: Path, limit: int = LIMIT) -> None:
    """Unpack an archive to the folder `into`, which is not there yet or empty, and appears complete or not.

    Nothing is written outside it, and no link leads out of it. Raises SpecError for an archive that would,
    that is damaged, or that holds more than `limit` bytes or anything but files, folders and links;
    FileMissing where there is no archive, and StorageError where `into` can't be written.
    """
    aside = into.with_name(f".{into.name}.part")
    with _storing(into):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    try:
        links = _unpack_files(archive, aside, limit)
        with _storing(into):
            for path, target in links.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(target)
            for path in links:
                _check_inside(path, aside)
            aside.rename(into)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack_files(archive: Path, folder: Path, limit: int) -> dict[Path, str]:
    """Unpack all but the links, which are returned: no file is ever written through one."""
    links: dict[Path, str] = {}
    try:
        with tarfile.open(archive, "r|gz", encoding="utf-8") as tar:
            for member in tar:
                limit -= member.size
                if limit < 0:
                    raise SpecError(f"the package {archive.name} holds more than is allowed")
                path = folder / _safe_name(member.name)
                if member.issym():
                    links[path] = member.linkname
                else:
                    _unpack_member(tar, member, path)
    except FileNotFoundError:
        raise FileMissing(f"the package {archive} is not there: submit again") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SpecError(f"the package {archive} is damaged ({error}): submit again") from None
    return links


def _safe_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise SpecError(f"the package holds {name!r}, which leads out of its folder")
    return path


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if not member.isreg() and not member.isdir():
        raise SpecError(f"the package holds {member.name!r}, which is no file, folder or link")
    content = tar.extractfile(member)
    with _storing(path):
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = 0o777 if member.mode & stat.S_IXUSR else 0o666
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)


def _check_inside(link: Path, folder: Path) -> None:
    if not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(folder)):
        raise SpecError(f"the package holds the link {link.name!r}, which leads out of its folder")


class PackageStore:
    """The packages of a system, in one folder, each in a file named by its digest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the package is, or would be. Raises SpecError for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise SpecError("the name of a package is the SHA-256 of its bytes: 64 digits and letters a to f")
        return self.folder / f"{digest}.tar.gz"

    def has(self, digest: str) -> bool:
        """Whether the package is there; if so, `sweep` leaves it for a while."""
        try:
            os.utime(self.path(digest))
        except FileNotFoundError:
            return False
        return True

    def put(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Keep a package. Raises like `receive`."""
        with self.receive(digest) as write:
            for chunk in chunks:
                write(chunk)

    @contextlib.contextmanager
    def receive(self, digest: str) -> Generator[Callable[[bytes], int], None, None]:
        """A function that takes the bytes of a package, which is kept once the block ends without an error.

        Raises SpecError where they do not have that digest, and StorageError where they can't be written.
        """
        path = self.path(digest)
        with _storing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False)  # noqa: SIM115
        try:
            with file:
                sink = _Hashing(cast(BinaryIO, file))
                yield sink.write
                if sink.digest.hexdigest() != digest:
                    raise SpecError(f"the bytes do not have the digest {digest}: upload the package again")
                with _storing(path):
                    file.flush()
                    os.fsync(file.fileno())
            with _storing(path):
                os.replace(file.name, path)
                _sync_folder(self.folder)
        finally:
            Path(file.name).unlink(missing_ok=True)

    def sweep(self, keep: Set[str], age: float = KEPT) -> None:
        """Delete the packages that are not in `keep` and that nobody put or asked for in `age` seconds."""
        kept = {self.path(digest).name for digest in keep}
        for path in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.name not in kept and path.stat().st_mtime < time.time() - age:
                    path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
