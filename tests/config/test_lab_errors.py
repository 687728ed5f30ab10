"""Test the errors for a wrong lab.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmlab.common.errors import ConfigError
from kmlab.config.lab import local_uri
from kmlab.config.starter import starter_files
from tests.labs import INTERFACE, SHORT, guest, lab_of


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "lab.yaml:1: the file is empty", None),
        ("name: a\n", "lab.yaml:1: the file has no 'guests'", "guests: …"),
        ("guests: {a: {image: x}}\n", "lab.yaml:1: the file has no 'name'", "name: …"),
        ("name: a\nguests: {}\n", "lab.yaml:2: a lab needs a guest", "image: debian-12"),
        ("name: a\nguests:\n", "lab.yaml:2: 'guests' must be a mapping, not nothing", "name: value"),
        (SHORT + "gests: {}\n", "lab.yaml:4: unknown key 'gests'", "did you mean 'guests'?"),
        (
            "name: a\nguests:\n  debian:\n    image: x\n    cpus: 2\n\n    memroy: 1G\n",
            "lab.yaml:7: unknown key 'memroy' in guest 'debian'",
            "did you mean 'memory'?",
        ),
        ("name: a\nguests:\n  g:\n    cpus: 2\n", "lab.yaml:3: guest 'g' has no 'image'", "image: …"),
        (
            "name: a\nguests:\n  g: debian-12\n",
            "lab.yaml:3: guest 'g' must be a mapping, not 'debian-12'",
            "image: …",
        ),
        (
            SHORT + "  debian: {image: x}\n",
            "lab.yaml:4: 'debian' is given twice in 'guests', first on line 3",
            "rename",
        ),
        (
            "name: a\nguests:\n  My_Guest: {image: x}\n",
            "lab.yaml:3: guest 'My_Guest' must be lower-case letters",
            "such as",
        ),
        (
            "name: a\nguests:\n  ../x: {image: x}\n",
            "lab.yaml:3: guest '../x' must be lower-case letters",
            "such as",
        ),
        ("name: " + "a" * 32 + "\n" + SHORT[8:], "lab.yaml:1: 'name' must be lower-case letters", "such as"),
        (
            SHORT + "default: debain\n",
            "lab.yaml:4: 'default' refers to an unknown guest 'debain'",
            "did you mean 'debian'?",
        ),
        (
            SHORT + "default:\n  - debian\n  - zz\n",
            "lab.yaml:6: 'default' refers to an unknown guest 'zz'",
            "guests: debian",
        ),
        (SHORT + "default: [debian, debian]\n", "lab.yaml:4: 'default' names 'debian' twice", "remove one"),
        (
            SHORT + "libvirt: qemu\n",
            "lab.yaml:4: 'libvirt' must be embedded or a libvirt URI, not 'qemu'",
            "qemu:///",
        ),
        (
            SHORT + "accel: kvn\n",
            "lab.yaml:4: 'accel' must be auto, kvm or tcg, not 'kvn'",
            "did you mean 'kvm'?",
        ),
        (SHORT + "vmcore_max: 12\n", "lab.yaml:4: 'vmcore_max' must be a size with its unit", None),
        (SHORT + "keep_runs: 0\n", "lab.yaml:4: 'keep_runs' must be a whole number from 1 to", None),
        (SHORT + "matrix: [6.1, ../x]\n", "lab.yaml:4: item 2 of 'matrix' must be a kernel, a guest", "debian@6.12"),
        (
            SHORT + "matrix: [6.1, debain@6.12]\n",
            "lab.yaml:4: 'matrix' refers to an unknown guest 'debain'",
            "'debian'",
        ),
        (SHORT + "matrix:\n  - 6.1\n  - 6.1\n", "lab.yaml:6: 'matrix' names '6.1' twice", "remove one"),
        (SHORT + "mirror: file:///x\n", "lab.yaml:4: 'mirror' must be an http or https URL", None),
        (SHORT + "allow: ['/(/']\n", "lab.yaml:4: item 1 of 'allow' must be a valid regular expression", None),
        (
            SHORT + "allow: ['']\n",
            "lab.yaml:4: item 1 of 'allow' must not be empty: an empty pattern matches every line",
            None,
        ),
        ("name: a\nguests:\n\tdebian: {}\n", "lab.yaml:3: a tab where YAML requires spaces", "spaces"),
        (b"name: a\xe9\n", "lab.yaml:1: not UTF-8: byte 0xe9 at offset 7", "UTF-8"),
    ],
)
def test_a_bad_lab_gives_one_error_with_its_line(
    folder: Path, text: str | bytes, message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        lab_of(folder, text)
    assert caught.value.message.startswith(message)
    assert (caught.value.hint is None) if hint is None else (hint in (caught.value.hint or ""))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cpus: 0", "'cpus' of guest 'g' must be a whole number from 1 to 64, not '0'"),
        ("cpus: 65", "must be a whole number from 1 to 64, not '65'"),
        ("cpus: two", "must be a whole number from 1 to 64, not 'two'"),
        ("cpus: [2]", "must be a whole number, not a list"),
        (
            "memory: 1024",
            "'memory' of guest 'g' must be a size with its unit, such as 512M or 1G, not '1024'",
        ),
        ("memory: 255M", "must be from 256M to 1T, not '255M'"),
        ("memory: 2T", "must be from 256M to 1T, not '2T'"),
        ("disk: 1M", "must be from 1G to 16T"),
        ("secure_boot: yes", "'secure_boot' of guest 'g' must be true or false, not 'yes'"),
        ("kernel: '; reboot'", "'kernel' of guest 'g' must be a kernel: default"),
        ("kernel: {lokal: x}", "unknown key 'lokal' in 'kernel' of guest 'g'"),
        ('cmdline: "a\\nb"', "'cmdline' of guest 'g' must be one line of plain ASCII"),
        ('cmdline: a "b c"', "must be one line of plain ASCII without quotes"),
        ("cmdline: $(reboot)", "must be one line of plain ASCII"),
        ("packages: [--force]", "item 1 of 'packages' of guest 'g' must be the name of an apt package"),
        ("sysctls: {panic: 1}", "'panic' of 'sysctls' of guest 'g' must be the name of a sysctl"),
        ("recipe: ../x", "'recipe' of guest 'g' must be lower-case letters"),
        ("name: h", "unknown key 'name' in guest 'g'"),
    ],
)
def test_a_bad_value_of_a_guest_is_named_with_its_line(folder: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        guest(folder, line)
    assert caught.value.message.startswith("lab.yaml:5: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("{url: 'https://a/b'}", "lab.yaml:3: 'image' of guest 'g' needs a sha256"),
        (
            "{url: 'ftp://a/b', unverified: true}",
            "'url' of 'image' of guest 'g' must be an http or https URL",
        ),
        ("{url: 'https://a/b', sha256: abc}", "must be the 64 hex digits that sha256sum prints, not 'abc'"),
        ("{url: 'https://a/b', sha265: abc}", "unknown key 'sha265' in 'image' of guest 'g'"),
        ("{paht: x}", "unknown key 'paht' in 'image' of guest 'g'"),
        ("[debian-12]", "must be text, {url: …}, {path: …} or {name: …}, not a list"),
        ("../debian", "must be the name of an image, such as debian-12 or ubuntu-24.04, not '../debian'"),
        ("", "'image' of guest 'g' has no value"),
    ],
)
def test_a_bad_image_is_named_with_its_line(folder: Path, image: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lab_of(folder, f"name: a\nguests:\n  g: {{image: {image}}}\n")
    assert caught.value.message.startswith("lab.yaml:3: ")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("exrcise: x", "unknown key 'exrcise' in module 'm'", "did you mean 'exercise'?"),
        ("params: {my-int: 1}", "'my-int' of 'params' of module 'm' must be a C identifier", None),
        (
            "params: {a: {b: c}}",
            "'a' of 'params' of module 'm' must be text, a whole number, true or false or",
            None,
        ),
        ("timeout: soon", "'timeout' of module 'm' must be a time above zero", None),
        (
            "guests: [debain]",
            "'guests' of module 'm' refers to an unknown guest 'debain'",
            "did you mean 'debian'?",
        ),
        ("exercise: ' '", "'exercise' of module 'm' must be a command", None),
        (
            "expect: {outcome: opps}",
            "'outcome' of 'expect' of module 'm' must be pass",
            "did you mean 'oops'?",
        ),
        ("expect: {outcome: []}", "'expect' of module 'm' has an empty list for 'outcome'", None),
        (
            "expect: {function: f}",
            "'expect' of module 'm' names a crash, but its outcome is pass",
            "outcome: oops",
        ),
        (
            "expect: {functoin: f}",
            "unknown key 'functoin' in 'expect' of module 'm'",
            "did you mean 'function'?",
        ),
        (
            "expect: {since: {6: {outcome: oops}}}",
            "since '6' must be a version of Linux, such as 6.4, not '6'",
            None,
        ),
        (
            "expect: {since: {6.4: {since: {6.5: {outcome: oops}}}}}",
            "'expect' of module 'm' has a 'since' within a 'since'",
            "under one",
        ),
        ("expect: oops", "'expect' of module 'm' must be a mapping, not 'oops'", "key: value"),
    ],
)
def test_a_bad_value_of_a_module_is_named_with_its_line(
    folder: Path, line: str, message: str, hint: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        lab_of(folder, f"{SHORT}modules:\n  m:\n    source: x\n    {line}\n")
    assert caught.value.message.startswith(f"lab.yaml:7: {message}")
    assert (caught.value.hint is None) if hint is None else (hint in (caught.value.hint or ""))


def test_the_line_of_a_key_is_available_for_later_errors(folder: Path) -> None:
    lab = lab_of(folder, "name: a\nguests:\n  debian:\n    cpus: 2\n\n    image: debain-12\n")
    assert lab.where("guests", "debian", "image") == "lab.yaml:6"
    assert lab.where("guests", "debian", "kernel") == "lab.yaml:3"
    error = lab.error(("guests", "debian", "image"), "unknown image 'debain-12'", "did you mean 'debian-12'?")
    assert error.message == "lab.yaml:6: unknown image 'debain-12'"


def test_an_unknown_guest_gets_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no guest 'nobel' in lab\.yaml") as caught:
        lab_of(folder, INTERFACE).guest("nobel")
    assert caught.value.hint == "did you mean 'noble'?"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_bytes_give_a_lab_or_one_clear_error(folder: Path, data: st.DataObject) -> None:
    """Arbitrary bytes hardly get past the first line, so most of the time a good lab is damaged instead."""
    content = bytearray(data.draw(st.sampled_from([INTERFACE, SHORT, starter_files("a")["lab.yaml"]])).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=6) | _PIECES)
    try:
        lab = lab_of(folder, data.draw(st.binary(max_size=60) | st.just(bytes(content))))
    except ConfigError as error:
        assert error.message.startswith("lab.yaml")
        assert error.message.isprintable()
    else:
        assert lab.default
        assert all(lab.guest(name) for name in lab.default)


_PIECES = st.sampled_from(
    [b"[", b"}", b": ", b"\n", b"\n  ", b"\t", b"- ", b"&a ", b"*a", b"!!int ", b"<<: ", b"'", b"~", b"{}"]
)


@pytest.mark.parametrize("uri", ["qemu+ssh://host/system", "qemu://host/system", "qemu+tcp:///system", "xen+tls://h/"])
def test_the_libvirt_of_another_machine_is_refused_before_anything_is_done(folder: Path, uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lab_of(folder, f"{SHORT}libvirt: {uri}\n")
    assert caught.value.message == (
        f"lab.yaml:4: '{uri}' is the libvirt of another machine; kmlab's guests run on this one"
    )
    with pytest.raises(ConfigError, match=r"^--connect: "):
        local_uri(uri, "--connect")


@pytest.mark.parametrize("uri", ["embedded", "qemu:///session", "qemu+unix:///system", "test:///default"])
def test_the_libvirt_of_this_machine_is_taken(uri: str) -> None:
    assert local_uri(uri, "--connect") == uri
