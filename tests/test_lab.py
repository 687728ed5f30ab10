"""kmlab/lab.py: what lab.yaml may ask for, and what is said about one that is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmlab.errors import ConfigError
from kmlab.lab import (
    Expect,
    GuestSpec,
    ImagePath,
    ImageUrl,
    Lab,
    LocalKernel,
    Module,
    find_lab,
    load_lab,
    open_lab,
)
from kmlab.starter import starter_files

INTERFACE = """\
name: my-lab
default: debian
guests:
  debian: {image: debian-12, kernel: default, cpus: 2, memory: 1G}
  noble:  {image: ubuntu-24.04, kernel: default, secure_boot: true}
modules:                                # optional: any directory with a Kbuild file or a Makefile runs without an entry
  params: {source: examples/params, params: {my_str: larva}, exercise: ./check.sh, expect: {outcome: pass, log: ["larva"]}}
libvirt: embedded                       # or any libvirt URI: qemu:///session, qemu:///system, qemu+ssh://host/system
accel: auto                             # auto, kvm, tcg
"""  # noqa: E501 - the interface's own example, to the letter

SHORT = "name: a\nguests:\n  debian: {image: debian-12}\n"
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lab_of(folder: Path, text: str | bytes) -> Lab:
    path = folder / "lab.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_lab(path)


def guest(folder: Path, line: str) -> GuestSpec:
    return lab_of(folder, f"name: a\nguests:\n  g:\n    image: x\n    {line}\n").guests["g"]


def test_the_example_of_the_interface_loads_to_the_letter(folder: Path) -> None:
    assert lab_of(folder, INTERFACE) == Lab(
        path=folder / "lab.yaml",
        name="my-lab",
        default=("debian",),
        guests={
            "debian": GuestSpec(name="debian", image="debian-12", kernel="default", cpus=2, memory=1 << 30),
            "noble": GuestSpec(name="noble", image="ubuntu-24.04", secure_boot=True),
        },
        modules={
            "params": Module(
                name="params",
                source=Path("examples/params"),
                params={"my_str": "larva"},
                exercise="./check.sh",
                expect=Expect(outcome=("pass",), log=("larva",)),
            )
        },
        libvirt="embedded",
        accel="auto",
    )


def test_what_is_not_said_has_the_interfaces_defaults(folder: Path) -> None:
    lab = lab_of(folder, SHORT)
    assert (lab.default, lab.modules, lab.libvirt, lab.accel, lab.build) == (
        ("debian",),
        {},
        "embedded",
        "auto",
        "auto",
    )
    assert (lab.vmcore, lab.vmcore_max, lab.keep_runs, lab.keep_runs_size) == ("auto", 2 << 30, 50, 2 << 30)
    spec = lab.guest("debian")
    assert (spec.kernel, spec.cpus, spec.memory, spec.secure_boot, spec.cmdline) == (
        "default",
        2,
        1 << 30,
        False,
        "",
    )


def test_every_key_of_a_lab_is_read(folder: Path) -> None:
    lab = lab_of(
        folder,
        f"""\
name: full
default: [one, two]
guests:
  one:
    image: {{url: https://images.example/a.img, sha256: {DIGEST.upper()}}}
    kernel: 6.10
    cpus: 4
    memory: 512M
    disk: 20G
    cmdline: lockdep.debug=1 quiet
    recipe: debian
    packages: [linux-perf, "gdb=13.1-3"]
    sysctls: {{kernel.panic: 0, net.ipv4.ip_forward: 1}}
  two: {{image: {{path: ~/mine.qcow2}}, kernel: {{local: ../linux}}}}
  three: {{image: {{url: "http://images.example/b.img", unverified: true}}}}
modules:
  m:
    source: src/m
    params: {{number: 4, list: [1, 2], flag: true, octal: 010, text: "4"}}
    expect: {{outcome: [oops, panic], kind: null-dereference, function: f, not_log: ["/bad.*/"], allow: oh}}
    timeout: 2m
    guests: two
    keep: true
libvirt: qemu+ssh://host/system
accel: tcg
build: sandbox
matrix: [6.1, 6.10, backports, one]
mirror: https://mirror.example/images
vmcore: never
vmcore_max: 256M
keep_runs: 5
keep_runs_size: 100M
allow: ["clocksource: timekeeping"]
""",
    )
    one, two, three = lab.guests.values()
    assert one == GuestSpec(
        name="one",
        image=ImageUrl(url="https://images.example/a.img", sha256=DIGEST),
        kernel="6.10",
        cpus=4,
        memory=512 << 20,
        disk=20 << 30,
        cmdline="lockdep.debug=1 quiet",
        recipe="debian",
        packages=("linux-perf", "gdb=13.1-3"),
        sysctls={"kernel.panic": "0", "net.ipv4.ip_forward": "1"},
    )
    assert two.image == ImagePath(path=Path("~/mine.qcow2"))
    assert two.kernel == LocalKernel(local=Path("../linux"))
    assert three.image == ImageUrl(url="http://images.example/b.img", unverified=True)
    assert lab.modules["m"] == Module(
        name="m",
        source=Path("src/m"),
        params={"number": 4, "list": (1, 2), "flag": True, "octal": "010", "text": "4"},
        expect=Expect(
            outcome=("oops", "panic"),
            kind="null-dereference",
            function="f",
            not_log=("/bad.*/",),
            allow=("oh",),
        ),
        timeout=120.0,
        guests=("two",),
        keep=True,
    )
    assert lab.default == ("one", "two")
    assert lab.libvirt == "qemu+ssh://host/system"
    assert (lab.accel, lab.build, lab.vmcore) == ("tcg", "sandbox", "never")
    assert lab.matrix == ("6.1", "6.10", "backports", "one")
    assert (lab.mirror, lab.allow) == ("https://mirror.example/images", ("clocksource: timekeeping",))
    assert (lab.vmcore_max, lab.keep_runs, lab.keep_runs_size) == (256 << 20, 5, 100 << 20)


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
            "lab.yaml:3: guest 'My_Guest' must be small letters",
            "such as",
        ),
        (
            "name: a\nguests:\n  ../x: {image: x}\n",
            "lab.yaml:3: guest '../x' must be small letters",
            "such as",
        ),
        ("name: " + "a" * 32 + "\n" + SHORT[8:], "lab.yaml:1: 'name' must be small letters", "such as"),
        (
            SHORT + "default: debain\n",
            "lab.yaml:4: 'default' names 'debain', which is no",
            "did you mean 'debian'?",
        ),
        (
            SHORT + "default:\n  - debian\n  - zz\n",
            "lab.yaml:6: 'default' names 'zz', which is no guest",
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
        (SHORT + "matrix: [6.1, debain@6.12]\n", "lab.yaml:4: 'matrix' names 'debain', which is no guest", "'debian'"),
        (SHORT + "matrix:\n  - 6.1\n  - 6.1\n", "lab.yaml:6: 'matrix' names '6.1' twice", "remove one"),
        (SHORT + "mirror: file:///x\n", "lab.yaml:4: 'mirror' must be an http or https URL", None),
        (SHORT + "allow: ['/(/']\n", "lab.yaml:4: item 1 of 'allow' must hold a regular expression", None),
        (
            SHORT + "allow: ['']\n",
            "lab.yaml:4: item 1 of 'allow' must be text, as empty text is in every line",
            None,
        ),
        ("name: a\nguests:\n\tdebian: {}\n", "lab.yaml:3: a tab where YAML wants spaces", "spaces"),
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
        ("recipe: ../x", "'recipe' of guest 'g' must be small letters"),
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
            "'guests' of module 'm' names 'debain', which is no guest",
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
            "'expect' of module 'm' names a crash, yet its outcome is pass",
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
            "side by side",
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


def test_the_line_of_a_key_is_there_for_errors_that_come_later(folder: Path) -> None:
    lab = lab_of(folder, "name: a\nguests:\n  debian:\n    cpus: 2\n\n    image: debain-12\n")
    assert lab.where("guests", "debian", "image") == "lab.yaml:6"
    assert lab.where("guests", "debian", "kernel") == "lab.yaml:3"
    error = lab.error(("guests", "debian", "image"), "unknown image 'debain-12'", "did you mean 'debian-12'?")
    assert error.message == "lab.yaml:6: unknown image 'debain-12'"


def test_a_guest_that_is_not_there_gets_the_nearest_name(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no guest 'nobel' in lab\.yaml") as caught:
        lab_of(folder, INTERFACE).guest("nobel")
    assert caught.value.hint == "did you mean 'noble'?"


def test_a_folder_without_an_entry_is_a_module_of_its_own_name(folder: Path) -> None:
    module = lab_of(folder, INTERFACE).module_for(Path("examples/my module"))
    assert module == Module(name="my-module", source=folder / "examples/my module")


def test_a_folder_with_an_entry_is_that_module_however_it_is_named(folder: Path) -> None:
    lab = lab_of(folder, INTERFACE)
    (folder / "examples/params").mkdir(parents=True)
    (folder / "link").symlink_to("examples/params")
    for directory in (
        "examples/params",
        "./examples/../examples/params/",
        "link",
        str(folder / "examples/params"),
    ):
        assert lab.module_for(Path(directory)) is lab.modules["params"]


def test_of_several_entries_for_a_folder_the_one_of_its_name_is_meant(folder: Path) -> None:
    lab = lab_of(
        folder,
        SHORT + "modules:\n  twice: {source: x}\n  x: {source: x}\n  b: {source: y}\n  a: {source: y}\n",
    )
    assert lab.module_for(Path("x")).name == "x"
    assert lab.module_for(Path("y")).name == "b"


def test_paths_start_from_the_folder_of_the_lab_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_of(folder, INTERFACE)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert lab.folder == folder
    assert lab.locate(lab.modules["params"].source) == folder / "examples/params"
    assert lab.locate(Path("~/mine.qcow2")) == Path("/home/somebody/mine.qcow2")
    assert lab.locate(Path("/srv/x")) == Path("/srv/x")


def test_the_lab_file_is_found_in_this_folder_or_one_above(folder: Path) -> None:
    below = folder / "a/b"
    below.mkdir(parents=True)
    lab_of(folder, INTERFACE)
    assert find_lab(below) == folder / "lab.yaml"
    assert find_lab(folder / "not/there/yet") == folder / "lab.yaml"
    assert open_lab(below).name == "my-lab"
    (folder / "a/lab.yaml").write_text(SHORT)
    assert find_lab(below) == folder / "a/lab.yaml"
    (below / "lab.yaml").mkdir()
    assert find_lab(below) == folder / "a/lab.yaml"
    assert open_lab(below, folder / "lab.yaml").name == "my-lab"


def test_no_lab_file_is_an_error_that_names_kmlab_init(tmp_path: Path) -> None:
    if find_lab(tmp_path) is None:
        with pytest.raises(ConfigError, match=r"no lab\.yaml in") as caught:
            open_lab(tmp_path)
        assert caught.value.hint == "kmlab init writes one"
    with pytest.raises(ConfigError, match="No such file"):
        open_lab(tmp_path, tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("called", "name"),
    [("my-lab", "my-lab"), ("My Lab!", "my-lab"), ("äöü", "lab"), ("-x" * 40, "x" + "-x" * 15)],
)
def test_the_starter_files_are_a_lab_that_loads_in_a_folder_of_any_name(folder: Path, called: str, name: str) -> None:
    for path, text in starter_files(called).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    lab = open_lab(folder)
    assert (lab.name, lab.default, lab.guest("debian").image) == (name, ("debian",), "debian-12")
    assert sorted(os.listdir(lab.locate(lab.modules["hello"].source))) == ["Makefile", "hello.c"]
    assert '\tpr_info("Hello, %s\\n", whom);\n' in (folder / "hello/hello.c").read_text()
    assert "\n\t$(MAKE) -C $(KDIR)" in (folder / "hello/Makefile").read_text()


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


def test_one_of_several_entries_for_a_folder_is_meant_by_its_name(folder: Path) -> None:
    entries = "modules:\n  a: {source: x, params: {n: 1}}\n  b: {source: x, params: {n: 2}}\n"
    lab = lab_of(folder, SHORT + entries)
    assert lab.module_for(Path("b")).params == {"n": 2}
    (folder / "b").mkdir()
    assert lab.module_for(folder / "b").source == folder / "b", "a folder of that name comes first"


def test_a_guest_with_another_kernel_is_a_guest_of_its_own(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, SHORT)
    spec = lab.guest("debian@6.12")
    assert (spec.name, spec.kernel, spec.image) == ("debian@6.12", "6.12", lab.guest("debian").image)
    assert lab.guest("debian@default") is lab.guest("debian")


@pytest.mark.parametrize("kernel", ["backports:rt", "6.1*", "linux-image-6.12.95+deb12-rt-amd64", "6.1.0-50~bpo12"])
def test_its_name_fits_a_path_and_stays_its_own(tmp_path: Path, kernel: str) -> None:
    lab = lab_of(tmp_path, SHORT)
    name = lab.guest(f"debian@{kernel}").name
    assert re.fullmatch(r"debian@[A-Za-z0-9.+_-]{1,24}", name)
    others = (kernel[:-1], kernel.replace(":", "-") + "x")
    assert name not in [lab.guest(f"debian@{other}").name for other in others]


@pytest.mark.parametrize("name", ["debian@../x", "debian@a@b", "debian@a b", "debain@6.1"])
def test_a_kernel_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        lab_of(tmp_path, SHORT).guest(name)


def test_the_columns_of_a_matrix_are_guests_and_kernels_of_guests_each_once(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "name: a\nguests:\n  one: {image: debian-12}\n  two: {image: debian-13, kernel: '6.12'}\n")
    names = [spec.name for spec in lab.columns(["one"], ["default", "6.12", "two", "two@backports", "two@6.12"])]
    assert names == ["one", "one@6.12", "two", "two@backports"]
    assert [spec.name for spec in lab.columns(["one", "two"], ["6.12"])] == ["one@6.12", "two"]


def test_what_is_expected_since_a_version_holds_instead_from_there_on(tmp_path: Path) -> None:
    text = "  m: {source: m, expect: {outcome: oops, log: [x], since: {'6.4': {}, 6.10: {outcome: [panic, hang]}}}}\n"
    expect = lab_of(tmp_path, SHORT + f"modules:\n{text}").modules["m"].expect
    assert expect.on((6, 1)) is expect is expect.on(None)
    assert expect.on((6, 4)) == expect.on((6, 9)) == Expect()
    assert expect.on((6, 10)).outcome == expect.on((7, 0)).outcome == ("panic", "hang")
