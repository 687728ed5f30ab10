"""kmlab.kernel.module.load_errors and refusal: refused loads in a saved log are explained as those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmlab.diagnosis.saved_log import judge_file
from kmlab.kernel.module.load_errors import RefusedLoad, explain_load_failure, find_refused_loads
from tests.places import TEST_DATA

LOGS = TEST_DATA / "refused"
RELEASE = "6.1.0-56-cloud-amd64"


def told(loads: list[RefusedLoad]) -> list[tuple[str | None, str]]:
    return [(load.module, load.failure.kind) for load in loads]


def found(*lines: str) -> list[tuple[str | None, str]]:
    return told(find_refused_loads(lines))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "refused-loads",
            [
                ("lamp_a", "symbol-version", "headers of another kernel"),
                ("lamp_b", "vermagic", "built for the kernel 6.1.0-20-demo and this one is 6.1.0-21-demo"),
                ("lamp_c", "unknown-symbol", "needs lamp_register()"),
                ("lamp_d", "btf", "built against another vmlinux"),
                (None, "signature", "key that this kernel does not know: enrol it with kmlab sign --mok"),
            ],
        ),
        ("load-btf", [("lantern", "btf", "built against another vmlinux")]),
        ("load-relocation", [("lantern", "relocation", "other flags for its code model")]),
        ("load-lockdown-old-wording", [(None, "signature", "the kernel is locked down: sign it with kmlab sign")]),
    ],
)
def test_a_saved_log_s_refused_loads_are_findings(name: str, wanted: list[tuple[str | None, str, str]]) -> None:
    crashes = judge_file(str(LOGS / f"{name}.log")).crashes
    assert [(crash.kind, crash.module, crash.class_) for crash in crashes] == [
        ("load-refused", m, c) for m, c, _ in wanted
    ]
    for crash, (_, _, words) in zip(crashes, wanted, strict=True):
        assert crash.reason is not None and words in crash.reason and crash.text


def test_insmod_s_words_alone_say_that_a_symbol_is_missing_or_that_init_said_so(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("insmod: ERROR: could not insert module /tmp/lamp.ko: Unknown symbol in module\n")
    (crash,) = judge_file(str(file)).crashes
    assert (crash.kind, crash.class_, crash.module) == ("load-refused", "unknown-symbol", "lamp")
    assert crash.title == "load of lamp refused: a symbol is not known"
    assert "or its init returned -ENOENT" in (crash.reason or "")


def test_a_key_that_the_kernel_does_not_know_is_a_note_where_nothing_says_what_came_of_it(tmp_path: Path) -> None:
    file = tmp_path / "log"
    said = "[    9.143316] PKCS#7 signature not signed with a trusted key\n"
    file.write_text(said)
    assert "by a key that this kernel does not know" in " ".join(judge_file(str(file)).notes)
    file.write_text(said + "[    9.2] lamp: module verification failed: signature and/or required key missing\n")
    assert judge_file(str(file)).notes == ()
    file.write_text(said + "[    9.2] Loading of module with unavailable key is rejected\n")
    judged = judge_file(str(file))
    assert ([crash.class_ for crash in judged.crashes], judged.notes) == (["signature"], ())


@pytest.mark.parametrize(
    ("words", "name", "kind", "said"),
    [
        ("Invalid argument", "load-btf", "btf", "type information (BTF) does not fit"),
        ("Invalid argument", "load-relocation", "relocation", "out of range"),
        ("Operation not permitted", "load-lockdown-old-wording", "signature", "locked down"),
    ],
)
def test_a_run_s_refused_load_is_not_taken_for_an_error_of_init(words: str, name: str, kind: str, said: str) -> None:
    lines = (LOGS / f"{name}.log").read_text().splitlines()
    stderr = f"insmod: ERROR: could not insert module lantern.ko: {words}\n"
    failure = explain_load_failure(stderr, 1, lines, "lantern", RELEASE)
    assert failure is not None
    assert failure.kind == kind and said in failure.reason and "init" not in failure.reason


@pytest.mark.parametrize(
    "line",
    [
        "Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7",
        "Lockdown: unsigned module loading is restricted; see man kernel_lockdown.7",
        "Lockdown: Loading of unsigned modules is restricted; see man kernel_lockdown.7",
        "Loading of unsigned module is restricted; see man kernel_lockdown.7",
        "Loading of unsigned module is rejected",
        "Loading of module with unavailable key is rejected",
        "Loading of module with unsupported crypto is rejected",
        "Request for unknown module key 'Magrathea: Glacier signing key: 6e03' err -11",
        'audit: type=1400 audit(1.0:1): avc:  denied  { integrity } lockdown_reason="unsigned module loading"',
    ],
)
def test_every_wording_about_a_signature_is_known(line: str) -> None:
    assert found(line) == [(None, "signature")]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("lamp: Unknown symbol lamp_on (err -2)", "unknown-symbol"),
        ("lamp: Unknown symbol lamp_on (err 0)", "unknown-symbol"),
        ("lamp: Unknown symbol lamp_on", "unknown-symbol"),
        ("lamp: no symbol version for module_layout", "symbol-version"),
        ("lamp: overflow in relocation type 279 val ffff800008b0", "relocation"),
        ("`lamp' likely not compiled with -mcmodel=kernel", "relocation"),
        ("lamp: section 4 reloc 58 sym 'memcpy': relocation 28 out of range (0xbf0041f4 -> 0xc02b0a80)", "relocation"),
        ("module lamp: Unknown rela relocation: 42", "relocation"),
        ("module lamp: unsupported RELA relocation: 311", "relocation"),
        ("lamp: module has no symbols (stripped?)", "format"),
        ("lamp: exports duplicate symbol lamp_on (owned by torch)", "duplicate-symbol"),
        ("insmod: ERROR: could not insert module ./lamp.ko: Exec format error", "format"),
        ("insmod: ERROR: could not insert module lamp.ko.xz: Invalid module format", "format"),
        ("modprobe: ERROR: could not insert 'lamp': Key was rejected by service", "signature"),
        ("systemd-modules-load[301]: Failed to insert module 'lamp': Required key not available", "signature"),
        ("insmod: can't insert 'lamp.ko': invalid module format", "format"),
    ],
)
def test_every_refusal_that_names_its_module_is_known(line: str, kind: str) -> None:
    assert found(line) == [("lamp", kind)]


def test_a_module_that_is_refused_for_several_symbols_is_one_finding() -> None:
    (load,) = find_refused_loads(["lamp: Unknown symbol a (err -2)", "lamp: Unknown symbol b (err -2)"] * 3)
    assert "a() (and 1 more)" in load.failure.reason


def test_a_relocation_is_of_the_module_that_is_named_beside_it() -> None:
    assert found("overflow in relocation type 10 val 1", "`lamp' likely not compiled with -mcmodel=kernel") == [
        ("lamp", "relocation")
    ]


def test_a_signature_is_of_the_module_that_insmod_names() -> None:
    assert found(
        "Lockdown: modprobe: unsigned module loading is restricted; see man kernel_lockdown.7",
        "modprobe: ERROR: could not insert 'lamp': Operation not permitted",
    ) == [("lamp", "signature")]


@pytest.mark.parametrize(
    "lines",
    [
        ["lamp: loading out-of-tree module taints kernel.", "lamp: module verification failed: signature missing"],
        ["Request for unknown module key 'x: 1' err -11", "lamp: module verification failed: signature missing"],
        ["lamp: unknown parameter 'colour' ignored"],
        ["insmod: ERROR: could not insert module lamp.ko: No such device"],
        ["modprobe: ERROR: could not insert 'lamp': File exists"],
        ["Kernel module BTF mismatch detected, BTF debug info may be unavailable for some modules"],
        ["lamp: Unknown symbols are fine"],
    ],
)
def test_what_is_loaded_all_the_same_is_no_refusal(lines: list[str]) -> None:
    assert found(*lines) == []


def test_what_a_program_writes_to_the_log_is_no_refusal(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("<12>[    1.000000] lamp: Unknown symbol a (err -2)\n<6>[    2.000000] hello\n")
    assert judge_file(str(tmp_path / "log")).crashes == ()


def test_a_refusal_comes_beside_a_crash(tmp_path: Path) -> None:
    crash = (TEST_DATA / "pasted" / "quoted-dmesg-T.log").read_text()
    (tmp_path / "log").write_text(crash + "> [Fri Mar  7 08:15:33 2025] lamp: Unknown symbol a (err -2)\n")
    assert [crash.kind for crash in judge_file(str(tmp_path / "log")).crashes] == ["oops", "load-refused"]
