"""YAML as people write it: what is read, what is refused, and that both name the place."""

from __future__ import annotations

import pytest

from raysched.specs.document import MAX_DEPTH, MAX_FILE, Place, Reading, read_yaml


def read(text: str | bytes) -> Reading:
    return read_yaml(text if isinstance(text, bytes) else text.encode(), "job.yaml")


def value(text: str | bytes) -> object:
    reading = read(text)
    assert not reading.problems
    return reading.documents[0].value


def complaint(text: str | bytes) -> str:
    (problem,) = read(text).problems
    return str(problem)


def test_scalars_stay_as_they_are_written() -> None:
    """Only true and false are booleans, and null, ~ and nothing are null."""
    text = "a: on\nb: 010\nc: 12:00:00\nd: 3.10\ne: True\nf: 0x1F\ng: 1_000\nh: 2026-01-02\ni: .inf\nj: =\n"
    assert list(value(text).values()) == [  # type: ignore[attr-defined]
        "on", "010", "12:00:00", "3.10", "True", "0x1F", "1_000", "2026-01-02", ".inf", "=",
    ]  # fmt: skip
    assert value("[true, false, null, ~, 'true', \"null\", '']") == [
        True, False, None, None, "true", "null", "",
    ]  # fmt: skip


def test_keys_stay_as_they_are_written_too() -> None:
    """`on: x` and `true: x` are fields with these names."""
    assert value("on: 1\ntrue: 2\n10: 3\n") == {"on": "1", "true": "2", "10": "3"}


def test_every_value_has_its_place() -> None:
    """Lines and columns count from 1, and what has no place has that of what is around it."""
    (document,) = read("a: 1\nb:\n  - x\n  - c: 2\n").documents
    assert document.place(("b", 1, "c")) == Place(4, 5)
    assert document.place(("b", 1, "missing")) == Place(4, 5)
    assert document.place(("missing",)) == Place(1, 1)


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [("a: 1\nb: 2\na: 3\n", 1, 3), ("env:\n  A: 1\n  B: 2\n  A: 1\n", 2, 4), ("{a: 1,\n a: 2}", 1, 2)],
)
def test_the_same_key_twice_names_both_lines(text: str, first: int, second: int) -> None:
    """Case spec-05: nobody has to search."""
    message = complaint(text)
    assert message.startswith(f"job.yaml:{second}: ")
    assert f"line {first}" in message
    assert "twice" in message


def test_a_byte_order_mark_and_crlf_change_nothing() -> None:
    """Case spec-06: four files that an editor shows alike."""
    body = b"name: bom\nentrypoint: 'true'\nresources:\n  gpu_fraction: 0.5\nnote: |\n  one\n  two\n"
    crlf = body.replace(b"\n", b"\r\n")
    mark = b"\xef\xbb\xbf"
    assert value(body) == value(mark + body) == value(crlf) == value(mark + crlf)


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a:\n  b: 1\n\tc: 2\n", "a: 1\t# comment\n", "\ta: 1\n"])
def test_a_tab_is_named(text: str) -> None:
    """Case spec-06: the word and the line."""
    line = text.index("\t") and text[: text.index("\t")].count("\n")
    assert complaint(text).startswith(f"job.yaml:{line + 1}:")
    assert "tab" in complaint(text)


@pytest.mark.parametrize(
    ("text", "place", "word"),
    [
        ("a: b: c", "1:5", "colon"),
        ('a: 1\nb: "x\n\nc: 3', "2:4", "quote"),
        ("a: [1, 2", "1:9", "bracket"),
        ("a: 1\nb\n", "2:1", "colon"),
        ("a: 1\n  b: 2\n", "2:4", "colon"),
        ("a:\n  b: 1\n c: 2\n", "3:2", "indentation"),
        ("a: !!int 3", "1:4", "tags"),
        ("a: !custom x", "1:4", "tags"),
        ("a: *b", "1:4", "anchor"),
        ("a: &b [*b]", "1:4", "alias"),
        ("a: '\x07'", "1:5", "character"),
        ('a: "\\ud800"', "1:4", "surrogate"),
        ('a: "\\U00110000"', "1:7", "escaped"),
        ("a: %x", "1:4", "quotes"),
        ("<<: {a: 1}", "1:1", "merge"),
        ("? [a]\n: 1", "1:3", "text"),
        ("'': 1", "1:1", "text"),
        ("[" * (MAX_DEPTH + 1), f"1:{MAX_DEPTH + 1}", "nested"),
    ],
)
def test_what_is_no_yaml_of_ours_is_told_in_a_line(text: str, place: str, word: str) -> None:
    """File, line, column, and words for somebody who does not know YAML's grammar."""
    message = complaint(text)
    assert message.startswith(f"job.yaml:{place}: ")
    assert word in message
    assert "\n" not in message


def test_aliases_work() -> None:
    """An alias repeats what its anchor names."""
    assert value("a: &x {b: 1}\nc: *x\n") == {"a": {"b": "1"}, "c": {"b": "1"}}


def test_aliases_that_grow_without_end_are_stopped() -> None:
    """Ten levels of ten would be ten thousand million."""
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11))
    assert "aliases" in complaint(f"a0: &a0 lol\n{levels}\n")


def test_a_file_that_is_too_large_is_refused() -> None:
    """Before it is parsed."""
    assert "KiB" in complaint(b"a" * (MAX_FILE + 1))


def test_what_is_not_utf_8_is_named_with_its_line() -> None:
    """A file saved in another encoding."""
    assert complaint("a: 1\nb: gr\xfcn\n".encode("latin-1")).startswith("job.yaml:2: ")


def test_several_documents() -> None:
    """Empty ones do not count, and what was read before a fault is kept."""
    assert [d.value for d in read("---\na: 1\n---\n---\nb: 2\n...\n").documents] == [{"a": "1"}, {"b": "2"}]
    reading = read("a: 1\n---\nb: [\n")
    assert len(reading.documents) == len(reading.problems) == 1


def test_an_empty_file_holds_nothing() -> None:
    """Neither documents nor problems."""
    assert read("") == read("# nothing\n") == Reading([], [])
