"""Test kmlab/config/yaml: what a YAML file may contain, and the errors for other files."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmlab.common.errors import ConfigError
from kmlab.config.yaml import reader, types
from kmlab.config.yaml.types import Duration, Name, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: Name
    text: str = ""
    maybe: str | None = None
    count: int = 0
    ratio: float = 1.0
    flag: bool = False
    size: Size = 0
    wait: Duration = 1.0
    path: Path | None = None
    mode: Literal["auto", "never"] = "auto"
    words: tuple[str, ...] = ()
    others: tuple[str, ...] | None = None
    free: Mapping[str, str | int | bool | tuple[str | int | bool, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ConfigError("must hold an even number", "add one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    title: str = "none"
    parts: Mapping[Name, Part] = field(default_factory=dict)
    either: str | Even | Named = ""
    origin: str = ""


def read(text: str | bytes) -> File:
    data = text if isinstance(text, bytes) else text.encode()
    return reader.parse(data, "f.yaml").into(File, origin="given")


def refused(text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return caught.value


def part(line: str) -> Part:
    return read(f"parts:\n  one:\n    {line}\n").parts["one"]


@pytest.mark.parametrize("text", ["6.10", "1:30", "no", "on", "010", "0x10", "1e3", "2026-11-23", "=", "+1", ".5"])
def test_text_stays_as_in_the_file_whatever_yaml_would_guess(text: str) -> None:
    assert part(f"text: {text}").text == text
    assert part(f"free: {{key: {text}}}").free == {"key": text}


def test_values_get_the_types_of_the_shape() -> None:
    got = part(
        "{text: 'a: b', maybe: ~, count: -12, ratio: 2.5, flag: true, size: 1.5G, wait: 2m, path: a/b,"
        " mode: never, words: [a, 1], free: {a: 4, b: true, c: '4', d: [1, x, false]}}"
    )
    assert got == Part(
        name="one",
        text="a: b",
        count=-12,
        ratio=2.5,
        flag=True,
        size=3 << 29,
        wait=120.0,
        path=Path("a/b"),
        mode="never",
        words=("a", "1"),
        free={"a": 4, "b": True, "c": "4", "d": (1, "x", False)},
    )
    assert got.free["b"] is True


def test_an_optional_list_accepts_a_single_word() -> None:
    assert part("others: a").others == ("a",)
    assert part("others: ~").others is None


def test_a_single_word_is_a_list_of_one() -> None:
    assert part("words: a").words == ("a",)


def test_a_collection_key_without_a_value_counts_as_missing() -> None:
    assert read("title: t\nparts:\n").parts == {}


def test_keys_are_text_too() -> None:
    assert list(read("parts: {6: {}, no: {}}").parts) == ["6", "no"]


def test_a_mapping_goes_to_the_alternative_whose_keys_it_has() -> None:
    assert read("either: {word: w}").either == Named(word="w")
    assert read("either: {number: 2}").either == Even(number=2)
    assert read("either: w").either == "w"


def test_aliases_and_merge_keys_work_and_own_keys_win() -> None:
    parts = read("parts:\n  a: &a {text: t, count: 1}\n  b: {<<: *a, count: 2}\n  c: {<<: [*a]}\n  d: *a\n").parts
    assert [(x.name, x.text, x.count) for x in parts.values()] == [
        ("a", "t", 1),
        ("b", "t", 2),
        ("c", "t", 1),
        ("d", "t", 1),
    ]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "f.yaml:1: the file is empty", None),
        ("# only a comment\n", "f.yaml:1: the file is empty", None),
        ("- a\n", "f.yaml:1: the file must be a mapping, not a list", "key: value"),
        ("\nword\n", "f.yaml:2: the file must be a mapping, not text", "key: value"),
        ("title: t\ntitel: t\n", "f.yaml:2: unknown key 'titel'", "did you mean 'title'?"),
        ("title: t\nzzz: t\n", "f.yaml:2: unknown key 'zzz'", "known keys: title, parts, either"),
        ("origin: x\n", "f.yaml:1: unknown key 'origin'", "known keys: title, parts, either"),
        (
            "parts:\n  one:\n    cuont: 1\n",
            "f.yaml:3: unknown key 'cuont' in part 'one'",
            "did you mean 'count'?",
        ),
        ("title: a\n\ntitle: b\n", "f.yaml:3: 'title' is given twice, first on line 1", "remove"),
        (
            "parts:\n  one: {}\n  one: {}\n",
            "f.yaml:3: 'one' is given twice in 'parts', first on line 2",
            "remove",
        ),
        ("parts:\n\tone: {}\n", "f.yaml:2: a tab where YAML requires spaces", "spaces"),
        ("parts:\n  one:\n    text: a\n\tcount: 1\n", "f.yaml:4: a tab where YAML requires spaces", "spaces"),
        ("title:\tt\n", "f.yaml:1: a tab where YAML requires spaces", "spaces"),
        (b"title: t\n# \xff\n", "f.yaml:2: not UTF-8: byte 0xff at offset 11", "UTF-8"),
        ("title: t".encode("utf-16"), "f.yaml:1: not UTF-8: byte 0xff at offset 0", "UTF-8"),
        ("title: t\n# \0\n", "f.yaml:2: a character that is not allowed in text: U+0000", "remove"),
        ("title: t\n# \x1b\n", "f.yaml:2: a character that is not allowed in text: U+001B", "remove"),
        ('\ntitle: "\\0"\n', "f.yaml:2: a NUL character or half a surrogate pair", None),
        ('\ntitle: "\\ud800"\n', "f.yaml:2: a NUL character or half a surrogate pair", None),
        ('\ntitle: "\\U00110000"\n', "f.yaml:2: not valid YAML: chr()", None),
        (
            "\ntitle: !!python/object/apply:os.system [x]\n",
            "f.yaml:2: a tag (tag:yaml.org,2002:python/object/apply:os.system)",
            "remove",
        ),
        ("title: t\n---\ntitle: u\n", "f.yaml:2: a second document begins", "one document"),
        ("title: [a\n", "f.yaml:1: not valid YAML", "bracket"),
        ("title: {a: b\nparts: x\n", "that began on line 1", "bracket"),
        ("title: 'a\n\n", "f.yaml:2: not valid YAML", "quote"),
        ("? [a, b]\n: c\n", "f.yaml:1: a key must be one word", "quotes"),
        ("title: {{ t }}\n", "f.yaml:1: a key must be one word", "quotes"),
        ("title: *nobody\n", "f.yaml:1: alias *nobody refers to no anchor above it", "&nobody"),
        ("parts: &a {b: *a}\n", "f.yaml:1: alias *a refers to no anchor above it", "&a"),
        ("parts:\n  one: {<<: 3}\n", "f.yaml:2: `<<` takes a mapping", None),
        ("title:\n", "f.yaml:1: 'title' has no value", "remove the line"),
        ("title: [a]\n", "f.yaml:1: 'title' must be text, not a list", None),
        ("parts: [a]\n", "f.yaml:1: 'parts' must be a mapping, not a list", "name: value"),
        ("parts:\n  one:\n", "f.yaml:2: part 'one' must be a mapping, not nothing", "key: value"),
        ("parts:\n  One: {}\n", "f.yaml:2: part 'One' must be lower-case letters", "such as"),
        ("either:\n  number: 3\n", "f.yaml:1: 'either' must hold an even number", "add one"),
        ("either:\n  numbr: 3\n", "f.yaml:2: unknown key 'numbr' in 'either'", "did you mean 'number'?"),
        ("either: [a]\n", "f.yaml:1: 'either' must be text, {number: …} or {word: …}, not a list", None),
        ("title: t\neither: {}\n", "f.yaml:2: 'either' has no 'number'", "number: …"),
    ],
)
def test_a_bad_file_gives_one_error_with_its_line(text: str | bytes, message: str, hint: str | None) -> None:
    error = refused(text)
    assert message in error.message
    assert error.message.startswith("f.yaml:")
    assert "\n" not in error.message
    if hint is None:
        assert error.hint is None
    else:
        assert error.hint is not None
        assert hint in error.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("count: two", "'count' of part 'one' must be a whole number, not 'two'"),
        ("count: 1.0", "'count' of part 'one' must be a whole number, not '1.0'"),
        ("count: 010", "must be a whole number, not '010'"),
        ("count: 1_000", "must be a whole number, not '1_000'"),
        ("count: 1:30", "must be a whole number, not '1:30'"),
        ("count: true", "must be a whole number, not 'true'"),
        ("count: [1]", "must be a whole number, not a list"),
        ("count: " + "9" * 5000, "must be a whole number, not '999"),
        ("count: \u0661", "must be a whole number, not '\u0661'"),
        ("ratio: .nan", "must be a number, not '.nan'"),
        ("flag: yes", "must be true or false, not 'yes'"),
        ("flag: {}", "must be true or false, not a mapping"),
        ("size: 12", "must be a size with its unit, such as 512M or 1G, not '12'"),
        ("size: 1X", "must be a size with its unit"),
        ("wait: soon", "must be a time above zero"),
        ("wait: 0", "must be a time above zero"),
        ("wait: 9999h", "must be a time above zero and at most a week"),
        ("mode: atuo", "must be auto or never, not 'atuo'"),
        ("words: {a: b}", "'words' of part 'one' must be a list, not a mapping"),
        ("words: [a, [b]]", "item 2 of 'words' of part 'one' must be text, not a list"),
        ("path: ''", "must be a path, not ''"),
        (
            "free: {key: {a: b}}",
            "'key' of 'free' of part 'one' must be text, a whole number, true or false or",
        ),
        ("text: ", "'text' of part 'one' has no value"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_line(line: str, message: str) -> None:
    error = refused(f"title: t\nparts:\n  one:\n    {line}\n")
    assert error.message.startswith("f.yaml:4: ")
    assert message in error.message


def test_yes_and_no_get_the_hint_to_write_true_or_false() -> None:
    assert refused("parts: {one: {flag: off}}").hint == "write true or false"


def test_the_line_is_that_of_the_value_in_a_list_over_several_lines() -> None:
    assert refused("parts:\n  one:\n    words:\n      - a\n      - {}\n").message.startswith("f.yaml:5: item 2")


def test_the_user_s_text_is_printed_without_control_characters() -> None:
    message = refused('parts: {one: {count: "\\e[31m\\n\u202e' + "x" * 500 + '"}}').message
    assert "\\x1b[31m\\x0a\\u202e" in message
    assert message.isprintable()
    assert len(message) < 200


def test_a_yaml_bomb_is_refused_before_it_unfolds() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    began = time.process_time()
    error = refused("\n".join(lines))
    assert error.message == "f.yaml:5: more than 20000 values"
    assert time.process_time() - began < 1


def test_a_bomb_of_merge_keys_is_refused() -> None:
    wide = ", ".join(f"k{n}: v" for n in range(300))
    lines = [f"a: &a {{{wide}}}", f"b: [{', '.join(['{<<: *a}'] * 200)}]"]
    assert "more than 20000 values" in refused("\n".join(lines)).message


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_endless_nesting_is_refused(opening: str) -> None:
    assert refused(opening * 100_000).message == "f.yaml:1: more than 32 levels deep"


def test_a_file_larger_than_a_mebibyte_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "f.yaml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        reader.load(large, File)
    large.write_bytes(b"title: t\n" + b"#" * ((1 << 20) - 9))
    assert reader.load(large, File).title == "t"


def test_a_path_that_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, why in [
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "a folder, not a YAML file"),
        (tmp_path / "fifo", "a special file, not a YAML file"),
        (tmp_path / "nul\0", "not a file name"),
    ]:
        with pytest.raises(ConfigError, match=why):
            reader.load(path, File)


def test_a_file_below_the_working_folder_has_a_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text("x: y\n")
    with pytest.raises(ConfigError, match=r"^f\.yaml:1: unknown key"):
        reader.load(tmp_path / "f.yaml", File)


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert read(b"\xef\xbb\xbftitle: t\r\nparts:\r\n  one: {}\r\n").title == "t"
    assert refused(b"title: t\r\n\r\nx: y\r\n").message.startswith("f.yaml:3: ")


def test_where_finds_the_line_of_a_key_or_of_the_nearest_one_above_it() -> None:
    lines = reader.parse(b"title: t\nparts:\n  one:\n    words:\n      - a\n      - b\n", "f.yaml").lines()
    assert reader.where("f.yaml", lines, "parts", "one", "words", "1") == "f.yaml:6"
    assert reader.where("f.yaml", lines, "parts", "one", "words") == "f.yaml:4"
    assert reader.where("f.yaml", lines, "parts", "one", "count") == "f.yaml:3"
    assert reader.where("f.yaml", lines, "nowhere") == "f.yaml:1"


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1g", 1 << 30), ("2 GiB", 2 << 30), ("1.5K", 1536)])
def test_sizes_are_binary(text: str, size: int) -> None:
    assert types.parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5", 1.5), ("500ms", 0.5), ("1h", 3600)])
def test_durations_are_seconds_unless_a_unit_says_otherwise(text: str, seconds: float) -> None:
    assert types.parse_duration(text) == seconds


def test_a_pattern_is_a_part_of_a_line_or_a_regular_expression_between_slashes() -> None:
    assert types.matches("Hello (w", "[1.0] Hello (world)")
    assert not types.matches("H.llo", "Hello")
    assert types.matches("/H.l+o$/", "Hello")
    assert not types.matches("/^ello/", "Hello")
    assert types.matches("/", "a/b")


_YAML = st.text(st.sampled_from("abtrue: -[]{}#&*!|>'\"%@`,?<\n\t\r~\\x019=\0\x1b\u2028é\ufeff"), max_size=200)


@given(st.binary(max_size=200) | _YAML.map(lambda text: text.encode()))
def test_any_bytes_give_a_value_or_one_clear_error(data: bytes) -> None:
    try:
        assert isinstance(read(data), File)
    except ConfigError as error:
        assert error.message.startswith("f.yaml")
        assert error.message.isprintable()
