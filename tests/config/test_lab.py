"""Test lab.yaml: its keys, and which module a folder is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kmlab.common.errors import ConfigError
from kmlab.config.lab import Expect, GuestSpec, ImagePath, ImageUrl, Lab, LocalKernel, Module, find_lab, open_lab
from kmlab.config.starter import starter_files
from tests.labs import DIGEST, INTERFACE, SHORT, lab_of


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


def test_missing_keys_have_the_interfaces_defaults(folder: Path) -> None:
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
libvirt: qemu+unix:///system?socket=/run/x
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
    assert lab.libvirt == "qemu+unix:///system?socket=/run/x"
    assert (lab.accel, lab.build, lab.vmcore) == ("tcg", "sandbox", "never")
    assert lab.matrix == ("6.1", "6.10", "backports", "one")
    assert (lab.mirror, lab.allow) == ("https://mirror.example/images", ("clocksource: timekeeping",))
    assert (lab.vmcore_max, lab.keep_runs, lab.keep_runs_size) == (256 << 20, 5, 100 << 20)


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


def test_of_several_entries_for_a_folder_the_one_with_its_name_is_used(folder: Path) -> None:
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


def test_one_of_several_entries_for_a_folder_is_selected_by_its_name(folder: Path) -> None:
    entries = "modules:\n  a: {source: x, params: {n: 1}}\n  b: {source: x, params: {n: 2}}\n"
    lab = lab_of(folder, SHORT + entries)
    assert lab.module_for(Path("b")).params == {"n": 2}
    (folder / "b").mkdir()
    assert lab.module_for(folder / "b").source == folder / "b", "a folder of that name comes first"


def test_a_guest_with_another_kernel_is_a_separate_guest(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, SHORT)
    spec = lab.guest("debian@6.12")
    assert (spec.name, spec.kernel, spec.image) == ("debian@6.12", "6.12", lab.guest("debian").image)
    assert lab.guest("debian@default") is lab.guest("debian")


@pytest.mark.parametrize("kernel", ["backports:rt", "6.1*", "linux-image-6.12.95+deb12-rt-amd64", "6.1.0-50~bpo12"])
def test_its_name_fits_a_path_and_stays_unique(tmp_path: Path, kernel: str) -> None:
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


def test_expect_since_replaces_the_expectations_from_that_version_on(tmp_path: Path) -> None:
    text = "  m: {source: m, expect: {outcome: oops, log: [x], since: {'6.4': {}, 6.10: {outcome: [panic, hang]}}}}\n"
    expect = lab_of(tmp_path, SHORT + f"modules:\n{text}").modules["m"].expect
    assert expect.on((6, 1)) is expect is expect.on(None)
    assert expect.on((6, 4)) == expect.on((6, 9)) == Expect()
    assert expect.on((6, 10)).outcome == expect.on((7, 0)).outcome == ("panic", "hang")
