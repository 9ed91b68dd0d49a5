"""Working directories: the same bytes for the same content, the same tree where it is unpacked."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import socket
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysched.errors import FileMissing, SpecError, StorageError
from raysched.package import PackageStore, pack, unpack

Tree = dict[str, object]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def write(folder: Path, tree: dict[str, str]) -> None:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def tree_of(folder: Path) -> Tree:
    """Each path with its content, whether it is executable, where a link leads."""
    found: Tree = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
    return found


def packed(folder: Path, limit: int | None = None) -> Tree:
    """What arrives on the other side."""
    with TemporaryDirectory() as scratch:
        archive = Path(scratch) / "a.tar.gz"
        if limit is None:
            pack(folder, archive)
        else:
            pack(folder, archive, limit)
        unpack(archive, Path(scratch) / "out")
        return tree_of(Path(scratch) / "out")


def refusal(folder: Path) -> str:
    with TemporaryDirectory() as scratch, pytest.raises(SpecError) as refused:
        pack(folder, Path(scratch) / "a.tar.gz")
    return str(refused.value)


# ---------------------------------------------------------------- packing


def test_names_with_spaces_and_apostrophes_arrive(tmp_path: Path) -> None:
    """Case vm-04: the folder and the files of it, in any letters."""
    folder = tmp_path / "my project (v2)"
    write(folder, {"it's data/naïve file.txt": "arrived\n", "main file.py": "x", 'a "b" $c\n*.txt': "y"})
    (folder / "空").mkdir()
    (folder / os.fsdecode(b"not-utf8-\xff")).write_text("z")
    assert packed(folder) == tree_of(folder)
    assert len(tree_of(folder)) == 6


def test_what_a_program_needs_of_its_files_is_kept(work: Path) -> None:
    """Empty folders, the right to execute, links inside the folder."""
    write(work, {"run.sh": "#!/bin/sh\n", "data/a": "1"})
    (work / "run.sh").chmod(0o700)
    (work / "empty/deep").mkdir(parents=True)
    (work / "link").symlink_to("data/a")
    (work / "data/up").symlink_to("../run.sh")
    (work / "dangling").symlink_to("nothing")
    (work / "loop").symlink_to("loop")
    assert packed(work) == tree_of(work)


def test_links_that_name_this_folder_lead_into_the_copy(work: Path) -> None:
    """An absolute link, or one by way of the parent, is written anew."""
    write(work, {"data/a": "1"})
    (work / "absolute").symlink_to(work / "data/a")
    (work / "data/around").symlink_to(f"../../{work.name}/data")
    found = packed(work)
    assert (found["absolute"], found["data/around"]) == ("data/a", ".")


@pytest.mark.parametrize("target", ["/etc", "..", "data/../../other", "back/../../x"])
def test_links_that_leave_the_folder_are_refused(work: Path, target: str) -> None:
    """By name, with what to do."""
    (work / "data").mkdir()
    (work / "back").symlink_to("data")
    (work / "link").symlink_to(target)
    message = refusal(work)
    assert f"{work / 'link'} leads out of the folder" in message
    assert ".rayschedignore" in message


def test_a_socket_is_refused_by_name(work: Path) -> None:
    """And a pipe would be too."""
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(work)
        server.bind("s")
        assert f"{work / 's'} is no file, folder or link" in refusal(work)
    os.unlink(work / "s")


def test_too_much_is_refused_with_the_largest(work: Path) -> None:
    """So that one knows what to list in .rayschedignore."""
    write(work, {"data/a": "x" * 600, "data/b": "x" * 500, "weights": "x" * 300, "main.py": "x", "z": "xx"})
    with TemporaryDirectory() as scratch, pytest.raises(SpecError) as refused:
        pack(work, Path(scratch) / "a", limit=1000)
    message = str(refused.value)
    assert message.index("data (") < message.index("weights (") < message.index("z (")
    assert ".rayschedignore" in message
    write(work, {".rayschedignore": "data\n"})
    assert "main.py" in packed(work, limit=1000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_may_be_listed_and_not_entered_is_named(work: Path, tmp_path: Path) -> None:
    closed = work / "closed"
    closed.mkdir()
    (closed / "file").touch()
    closed.chmod(0o600)
    with pytest.raises(SpecError, match=r"closed/file can't be packed"):
        pack(work, tmp_path / "package.tar.gz")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A file is none."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "no", tmp_path / "file"):
        with pytest.raises(FileMissing, match=str(folder)):
            pack(folder, tmp_path / "a.tar.gz")


def test_a_full_disk_is_told(work: Path) -> None:
    """The device that is always full."""
    write(work, {"a": "x" * 100_000})
    with pytest.raises(StorageError, match="free some space"):
        pack(work, Path("/dev/full"))


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..", ".git", ".venv", "__pycache__") and not name.endswith("ignore")
)
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=40), max_size=8
)


@given(trees, st.randoms())
@settings(deadline=None, max_examples=30)
def test_packing_is_deterministic_and_unpacking_restores_the_tree(
    tree: dict[str, bytes], random: object
) -> None:
    """Whatever the order in which the files came, and whenever."""
    with TemporaryDirectory() as first, TemporaryDirectory() as second, TemporaryDirectory() as scratch:
        paths = list(tree)
        kept = [path for path in paths if _grow(Path(first), path, tree[path])]
        for path in reversed(kept):
            assert _grow(Path(second), path, tree[path])
            os.utime(Path(second) / path, (1, 1))
        one, two = Path(scratch) / "1", Path(scratch) / "2"
        assert (
            pack(Path(first), one) == pack(Path(second), two) == hashlib.sha256(one.read_bytes()).hexdigest()
        )
        assert one.read_bytes() == two.read_bytes()
        unpack(one, Path(scratch) / "out")
        assert tree_of(Path(scratch) / "out") == tree_of(Path(first))


def _grow(folder: Path, name: str, content: bytes) -> bool:
    """Write a file, unless one of its folders is a file already or it is a folder."""
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False
    return True


# ---------------------------------------------------------------- ignore files

IGNORES = [
    {".gitignore": "*.log\n!keep.log\n/top\nbuild/\ndoc/*.txt\n**/cache\na/**/b\n# no\n\\#yes\n[ab].o\n"},
    {".gitignore": "*\n!*/\n!*.py\n"},
    {".gitignore": "*.log\n", "sub/.gitignore": "!x.log\n/only\n", "sub/deep/.gitignore": "*.py\n"},
    {".gitignore": "sub\n!sub/x.log\n"},
    {".gitignore": "build/\n", "sub/.gitignore": "!build/\n"},
    {".gitignore": "sub/*\n!sub/deep\n", "sub/deep/.gitignore": "x.*\n"},
    {".gitignore": "*.log\r\nspace dir/\r\n", "sub/.gitignore": "\ufeffx.py\n"},
    {".gitignore": "top \nonly\\ \n?.o\n/sub/**\n!/sub/x.py\n"},
]
FILES = [
    *(
        "x.log",
        "keep.log",
        "x.py",
        "top",
        "only",
        "#yes",
        "a.o",
        "c.o",
        "build/x",
        "doc/n.txt",
        "doc/in/n.txt",
    ),
    *("cache/x", "a/b/x", "a/c/d/b/x", "sub/x.log", "sub/x.py", "sub/only", "sub/top", "sub/build/x"),
    *("sub/deep/x.py", "sub/deep/x.log", "sub/deep/only", "sub/cache/x", "space dir/x"),
]


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="compares with git itself")


def as_git_says(folder: Path) -> set[str]:
    """The files that git would not ignore."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", folder], check=True, env=environment)
    listing = ["git", "-C", str(folder), "ls-files", "-z", "--others", "--exclude-standard"]
    said = subprocess.run(listing, check=True, env=environment, capture_output=True, text=True).stdout
    return set(said.split("\0")) - {""}


def files_of(tree: Tree) -> set[str]:
    return {name for name, content in tree.items() if content is not None}


@needs_git
@pytest.mark.parametrize("ignores", IGNORES, ids=range(len(IGNORES)))
def test_gitignore_means_what_git_says(work: Path, ignores: dict[str, str]) -> None:
    """Patterns, folders below, the nearest file first, what is brought back."""
    write(work, {**dict.fromkeys(FILES, "x"), **ignores})
    assert files_of(packed(work)) == as_git_says(work)


pieces = st.sampled_from(
    [*"abAB1/*?! #.-]", "**", "[ab]", "[!a]", "[^b]", "[a-z]", "[]a]", "[[:upper:]]", "[", "\\", "\\*"]
)
patterns = st.lists(pieces, min_size=1, max_size=5).map("".join)


@needs_git
@given(st.lists(patterns, max_size=4), st.lists(patterns, max_size=2))
@settings(deadline=None, max_examples=30)
def test_any_pattern_means_what_git_says(top: list[str], below: list[str]) -> None:
    """Names are drawn from the letters of the patterns."""
    levels = ["a", "b", "ab", "A", "1", "*", "]", "#a", "!b", "a ", "-.a"]
    tree = [f"{folder}/{name}" for folder in ["a", "ab", "a/b", "b/a/b"] for name in levels]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in [*tree, *levels]:
            _grow(folder, name, b"x")
        write(folder, {".gitignore": "\n".join(top), "a/.gitignore": "\n".join(below)})
        assert files_of(packed(folder)) == as_git_says(folder)


def test_rayschedignore_has_the_last_word(work: Path) -> None:
    """It leaves out more than git does, and brings back what git leaves out."""
    write(work, {"a.bin": "x", "b.bin": "x", "c.py": "x", "sub/c.py": "x", "sub/d.bin": "x"})
    write(
        work,
        {".gitignore": "*.bin\n", ".rayschedignore": "!b.bin\nsub/c.py\n", "sub/.rayschedignore": "!d.bin\n"},
    )
    assert {"b.bin", "c.py", "sub/d.bin"} <= set(packed(work))
    assert not {"a.bin", "sub/c.py"} & set(packed(work))


def test_what_no_job_needs_is_always_left_out(work: Path) -> None:
    """The history, the environment of this machine, compiled files; at any depth."""
    write(work, {".git/x": "", ".venv/x": "", "a/__pycache__/x": "", "a/b/.git": "gitdir: x", "a/b/c": ""})
    assert {name for name, content in packed(work).items() if content} == {"a/b/c"}


# ---------------------------------------------------------------- unpacking


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"x" if kind == tarfile.REGTYPE else b""


EVIL = {
    "parent": [member("../evil")],
    "absolute": [member("/tmp/evil")],
    "inner parent": [member("a/../../evil")],
    "link out": [member("l", tarfile.SYMTYPE, "..")],
    "absolute link": [member("l", tarfile.SYMTYPE, "/etc")],
    "link through a link": [member("e", tarfile.SYMTYPE, "."), member("l", tarfile.SYMTYPE, "e/../..")],
    "hard link": [member("l", tarfile.LNKTYPE, "/etc/passwd")],
    "device": [member("d", tarfile.CHRTYPE)],
    "pipe": [member("p", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("members", EVIL.values(), ids=EVIL.keys())
def test_an_archive_that_leaves_its_folder_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    """Nothing of it stays, inside or outside."""
    archive = archive_of(tmp_path / "a.tar.gz", *members)
    (tmp_path / "in").mkdir()
    with pytest.raises(SpecError, match="the package holds"):
        unpack(archive, tmp_path / "in/out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz", "in"]


def test_no_file_is_written_through_a_link(tmp_path: Path) -> None:
    """A link and then a file below it: one of the two can't be."""
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = archive_of(tmp_path / "a", member("l", tarfile.SYMTYPE, str(outside)), member("l/evil"))
    with pytest.raises((SpecError, StorageError)):
        unpack(archive, tmp_path / "out")
    assert not list(outside.iterdir())
    assert not (tmp_path / "out").exists()


def test_an_archive_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    """Before it fills the disk."""
    archive = archive_of(tmp_path / "a", (tarfile.TarInfo("zeros"), bytes(10**6)))
    with pytest.raises(SpecError, match="more than"):
        unpack(archive, tmp_path / "out", limit=10**5)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"no" + data, lambda data: b""]
)
def test_a_damaged_archive_is_told(work: Path, tmp_path: Path, damage: object) -> None:
    """And nothing half unpacked is left."""
    (work / "a").write_bytes(os.urandom(10_000))
    pack(work, tmp_path / "a")
    (tmp_path / "b").write_bytes(damage((tmp_path / "a").read_bytes()))  # type: ignore[operator]
    with pytest.raises(SpecError, match="damaged"):
        unpack(tmp_path / "b", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A package that was swept."""
    with pytest.raises(FileMissing, match="nothing"):
        unpack(tmp_path / "nothing.tar.gz", tmp_path / "out")


def test_what_a_crash_left_half_unpacked_is_done_anew(work: Path, tmp_path: Path) -> None:
    """The folder appears complete or not at all; an empty one may be there."""
    write(work, {"a": "1"})
    pack(work, tmp_path / "a")
    write(tmp_path, {".out.part/old": "half"})
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a", tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(work)


# ---------------------------------------------------------------- the store

DIGEST = hashlib.sha256(b"content").hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> PackageStore:
    """An empty store, whose folder is not there yet."""
    return PackageStore(tmp_path / "packages")


def parts() -> Iterator[bytes]:
    yield from (b"con", b"tent")


def test_a_package_is_kept_under_its_digest(store: PackageStore) -> None:
    """A second time changes nothing."""
    assert not store.has(DIGEST)
    for _ in range(2):
        store.put(DIGEST, parts())
        assert store.has(DIGEST)
        assert [path.read_bytes() for path in store.folder.iterdir()] == [b"content"]
    assert store.path(DIGEST).name == f"{DIGEST}.tar.gz"


def test_other_bytes_than_the_digest_says_are_refused(store: PackageStore) -> None:
    """Nothing of them stays."""
    with pytest.raises(SpecError, match="upload the package again"):
        store.put(DIGEST, [b"other"])
    assert not list(store.folder.iterdir())


def test_an_upload_that_breaks_off_leaves_nothing(store: PackageStore) -> None:
    """The client went away in the middle."""

    def broken() -> Iterator[bytes]:
        yield b"con"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        store.put(DIGEST, broken())
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("name", ["../../etc/passwd", "", DIGEST.upper(), DIGEST[:-1], DIGEST + "\n"])
def test_what_is_no_digest_names_no_file(store: PackageStore, name: str) -> None:
    """The name comes from a URL."""
    with pytest.raises(SpecError, match="SHA-256"):
        store.path(name)


def test_a_store_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    """Its folder is a file, for instance."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't be written"):
        PackageStore(tmp_path / "file/packages").put(DIGEST, parts())


def test_a_sweep_leaves_what_is_named_and_what_is_new(store: PackageStore) -> None:
    """A package whose job is about to be submitted is not named yet; asking for one counts as new."""
    digests = {
        content: hashlib.sha256(content).hexdigest() for content in (b"named", b"old", b"asked", b"new")
    }
    for content, digest in digests.items():
        store.put(digest, [content])
        if content != b"new":
            os.utime(store.path(digest), (0, 0))
    (store.folder / "broken.part").touch()
    os.utime(store.folder / "broken.part", (0, 0))
    assert store.has(digests[b"asked"])
    store.sweep({digests[b"named"]})
    assert {path.read_bytes() for path in store.folder.iterdir()} == {b"named", b"asked", b"new"}


def test_a_sweep_of_a_store_that_was_never_used(store: PackageStore) -> None:
    """There is nothing to delete."""
    store.sweep(set())
