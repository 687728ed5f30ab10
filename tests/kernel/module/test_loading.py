"""kmlab.kernel.loading: failures to load and unload in plain words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmlab.kernel.module.failure import Failure
from kmlab.kernel.module.load_errors import explain_load_failure, find_ignored_params, parse_symbol_owners
from kmlab.kernel.module.modinfo import ModInfo, parse_modinfo
from kmlab.kernel.module.proc_modules import ProcModule
from kmlab.kernel.module.unload_errors import explain_unload_failure
from tests.places import TEST_DATA

RELEASE = "6.1.0-56-cloud-amd64"
INFO = parse_modinfo((TEST_DATA / "ko" / "frames.ko").read_bytes())


def insmod(words: str) -> str:
    return f"insmod: ERROR: could not insert module mod.ko: {words}\n"


def load(
    words: str,
    *log: str,
    modinfo: ModInfo | None = None,
    owners: dict[str, str] | None = None,
    code: int | None = 1,
    already: bool | None = None,
) -> Failure:
    failure = explain_load_failure(insmod(words), code, log, "mod", RELEASE, modinfo, owners, already_loaded=already)
    assert failure is not None
    assert failure.reason.endswith(".") and "\n" not in failure.reason
    return failure


def test_a_clean_load_is_no_failure() -> None:
    log = ["mod: loading out-of-tree module taints kernel.", "Hello, world."]
    assert explain_load_failure("", 0, log, "mod", RELEASE) is None


def test_another_kernel_s_module_names_both_kernels() -> None:
    failure = load(
        "Invalid module format",
        f"mod: version magic '6.1.0-47-amd64 SMP preempt ' should be '{RELEASE} SMP preempt mod_unload '",
    )
    assert failure.kind == "vermagic"
    assert "built for the kernel 6.1.0-47-amd64" in failure.reason and RELEASE in failure.reason
    assert "kmlab build" in failure.reason


def test_the_same_release_with_other_options_is_said_otherwise() -> None:
    failure = load("Invalid module format", f"mod: version magic '{RELEASE} SMP ' should be '{RELEASE} SMP preempt '")
    assert failure.kind == "vermagic" and "configured otherwise" in failure.reason


def test_another_abi_of_the_series_is_a_disagreement_about_versions() -> None:
    failure = load(
        "Invalid module format",
        "mod: disagrees about version of symbol module_layout",
        modinfo=replace(INFO, vermagic="6.1.0-47-cloud-amd64 SMP preempt mod_unload modversions "),
    )
    assert (failure.kind, failure.symbol) == ("symbol-version", "module_layout")
    assert "another kernel" in failure.reason and "6.1.0-47-cloud-amd64" in failure.reason


def test_a_disagreement_goes_before_the_unknown_symbol_that_follows_it() -> None:
    failure = load(
        "Invalid argument",
        "mod: disagrees about version of symbol base_call",
        "mod: Unknown symbol base_call (err -22)",
    )
    assert (failure.kind, failure.symbol, failure.errno) == ("symbol-version", "base_call", "EINVAL")


def test_an_unknown_symbol_names_the_module_that_has_it() -> None:
    failure = load(
        "Unknown symbol in module",
        "mod: Unknown symbol usb_register_driver (err -2)",
        "mod: Unknown symbol usb_deregister (err -2)",
        owners={"usb_register_driver": "usbcore"},
        modinfo=INFO,
    )
    assert (failure.kind, failure.symbol, failure.subject) == (
        "unknown-symbol",
        "usb_register_driver",
        "usbcore",
    )
    assert "modprobe usbcore" in failure.reason and "(and 1 more)" in failure.reason


def test_an_unknown_symbol_of_nobody_says_that() -> None:
    failure = load("Unknown symbol in module", "mod: Unknown symbol foo (err -2)", modinfo=INFO)
    assert failure.kind == "unknown-symbol" and "does not export" in failure.reason


def test_a_gpl_only_symbol_looks_unknown_to_a_proprietary_module() -> None:
    failure = load(
        "Unknown symbol in module",
        "mod: module license 'Proprietary' taints kernel.",
        "mod: Unknown symbol class_create (err -2)",
        modinfo=replace(INFO, license="Proprietary"),
        owners={"class_create": "vmlinux"},
    )
    assert (failure.kind, failure.symbol) == (
        "gpl-only",
        "class_create",
    ) and "'Proprietary'" in failure.reason


def test_a_namespace_that_is_not_imported_is_named() -> None:
    failure = load(
        "Invalid argument",
        "mod: module uses symbol (dma_buf_put) from namespace DMA_BUF, but does not import it.",
        "mod: Unknown symbol dma_buf_put (err -22)",
    )
    assert failure.kind == "namespace" and "MODULE_IMPORT_NS" in failure.reason


@pytest.mark.parametrize(
    ("words", "name", "meaning"),
    [
        ("No such device", "ENODEV", "not in this machine"),
        ("Device or resource busy", "EBUSY", "taken"),
        ("Cannot allocate memory", "ENOMEM", "memory"),
        ("Invalid parameters", "EINVAL", "invalid argument"),
        ("Unknown error 517", "EPROBE_DEFER", "not ready"),
        ("Input/output error", "EIO", ""),
        ("Protocol error", None, "Protocol error"),
    ],
)
def test_an_error_of_init_is_named(words: str, name: str | None, meaning: str) -> None:
    failure = load(words, "mod: probing")
    assert failure.errno == name and meaning in failure.reason
    if name:
        assert f"-{name}" in failure.reason


def test_enoent_from_init_is_not_called_an_unknown_symbol() -> None:
    failure = load("Unknown symbol in module", "mod: no table")
    assert (failure.kind, failure.errno) == ("init-error", "ENOENT")


def test_busybox_s_words_are_understood() -> None:
    stderr = "insmod: can't insert 'mod.ko': unknown symbol in module, or unknown parameter\n"
    failure = explain_load_failure(stderr, 1, [], "mod", RELEASE)
    assert failure is not None and failure.errno == "ENOENT"


def test_a_missing_firmware_file_is_named_and_not_a_symbol() -> None:
    failure = load(
        "Unknown symbol in module",
        "platform mod.0: Direct firmware load for vendor/chip.bin failed with error -2",
    )
    assert (failure.kind, failure.subject, failure.errno) == ("firmware", "vendor/chip.bin", "ENOENT")


def test_a_missing_firmware_file_that_init_did_without_is_not_the_reason() -> None:
    failure = load("No such device", "mod: Direct firmware load for x.bin failed with error -2")
    assert failure.errno == "ENODEV"


@pytest.mark.parametrize(
    "line",
    [
        "do_init_module: 'mod'->init suspiciously returned 5, it should follow 0/-E convention",
        "mod: init suspiciously returned 5, it should follow 0/-E convention",
    ],
)
def test_a_positive_return_is_told_in_both_wordings_though_it_loads(line: str) -> None:
    failure = explain_load_failure("", 0, [line], "mod", RELEASE)
    assert failure is not None and failure.kind == "init-positive" and "returned 5" in failure.reason


def test_eexist_is_the_kernel_s_if_the_module_was_there() -> None:
    assert "loaded already" in load("File exists", already=True).reason


def test_eexist_is_init_s_own_if_the_module_was_not_there() -> None:
    failure = load("File exists", already=False)
    assert failure.kind == "init-error" and "-EEXIST" in failure.reason


def test_eexist_says_both_if_nobody_knows() -> None:
    failure = load("File exists")
    assert failure.kind == "exists" and "or its own init" in failure.reason


def test_a_newer_kernel_s_ebusy_is_init_s_eexist() -> None:
    line = "mod: init suspiciously returned -EEXIST: Overriding with -EBUSY"
    assert load("Device or resource busy", line).errno == "EEXIST"


@pytest.mark.parametrize(
    ("words", "line", "part"),
    [
        ("Key was rejected by service", "Loading of unsigned module is rejected", "is not signed"),
        (
            "Key was rejected by service",
            "Loading of module with unavailable key is rejected",
            "kmlab sign --mok",
        ),
        ("Key was rejected by service", "", "altered after it was signed"),
        (
            "Operation not permitted",
            "Lockdown: insmod: unsigned module loading is restricted; see man kernel_lockdown.7",
            "locked down",
        ),
    ],
)
def test_a_refused_signature_says_which(words: str, line: str, part: str) -> None:
    failure = load(words, line)
    assert failure.kind == "signature" and part in failure.reason and "kmlab sign" in failure.reason


def test_a_bad_value_names_parameter_and_type() -> None:
    failure = load("Invalid parameters", "mod: `abc' invalid for parameter `my_int'", modinfo=INFO)
    assert (failure.kind, failure.subject) == ("parameter", "my_int") and "type int" in failure.reason


def test_too_many_elements_are_counted() -> None:
    failure = load(
        "Invalid parameters",
        "my_array: can only take 4 arguments",
        "mod: `1,2,3,4,5' invalid for parameter `my_array'",
    )
    assert failure.subject == "my_array" and "at most 4" in failure.reason


def test_a_value_out_of_range_is_told() -> None:
    assert load("No space left on device", "mod: `9' too large for parameter `s'").errno == "ENOSPC"


def test_an_unknown_parameter_is_ignored_by_the_kernel_and_found_by_us() -> None:
    assert find_ignored_params(["mod: unknown parameter 'colour' ignored", "x"], "mod") == ["colour"]


def test_a_file_that_is_no_module_for_this_machine_says_so() -> None:
    failure = load("Invalid module format", "Invalid ELF header magic: != ELF")
    assert failure.kind == "format" and "Invalid ELF header" in failure.reason


def test_a_duplicate_symbol_names_its_owner() -> None:
    failure = load("Exec format error", "mod: exports duplicate symbol hello (owned by other)")
    assert (failure.kind, failure.symbol, failure.subject) == ("duplicate-symbol", "hello", "other")


def test_an_init_that_crashes_is_not_an_error_of_insmod() -> None:
    log = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "RIP: 0010:mod_init+0x5/0x10 [mod]",
    ]
    assert load("", *log, code=137).kind == "init-crash"
    assert load("", *log, code=139).kind == "init-crash"


def test_an_init_without_end_says_so() -> None:
    assert load("", code=None).kind == "init-hang"


def test_a_killed_insmod_without_a_crash_is_memory_or_a_signal() -> None:
    assert load("", "Out of memory: Killed process 9 (insmod)", code=137).kind == "memory"
    assert load("", code=137).kind == "killed"


def test_a_name_with_a_dash_in_the_log_is_the_same_module() -> None:
    failure = explain_load_failure(
        insmod("Invalid module format"), 1, ["my-mod: disagrees about version of symbol f"], "my_mod", RELEASE
    )
    assert failure is not None and failure.kind == "symbol-version"


def test_another_module_s_lines_are_not_taken_for_this_one_s() -> None:
    assert load("No such device", "othermod: Unknown symbol f (err -2)").errno == "ENODEV"


def test_escape_codes_of_a_guest_stay_out_of_the_reason() -> None:
    assert "\x1b" not in load("odd\x1b[31m words").reason
    assert "\x1b" not in load("Invalid parameters", "mod: `\x1b[2J' invalid for parameter `n'").reason


def test_symbol_owners_come_from_module_symvers_and_from_modules_symbols() -> None:
    symvers = "0x1\tusb_register\tdrivers/usb/core/usbcore\tEXPORT_SYMBOL_GPL\t\n"
    symvers += "0x2\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"
    assert parse_symbol_owners(symvers) == {"usb_register": "usbcore", "printk": "vmlinux"}
    assert parse_symbol_owners("# Aliases\nalias symbol:foo bar\n") == {"foo": "bar"}


@pytest.mark.parametrize(
    ("words", "log", "kind", "said"),
    [
        (
            "Invalid parameters",
            ["mod: module is already loaded"],
            "exists",
            "a part of the kernel itself is called mod",
        ),
        ("Invalid module format", ["Invalid architecture in ELF header: 183"], "format", "another kind of processor"),
        ("Invalid module format", ["mod: module has no symbols (stripped?)"], "format", "stripped of its symbols"),
        ("Operation not permitted", ["mod: begins"], "init-error", "a plain -1 is this, too"),
    ],
)
def test_what_was_seen_in_guests_is_said_as_it_is(words: str, log: list[str], kind: str, said: str) -> None:
    failure = load(words, *log)
    assert failure.kind == kind and said in failure.reason


def unload(stderr: str, **how: object) -> Failure:
    failure = explain_unload_failure(stderr, 1, "mod", **how)  # type: ignore[arg-type]
    assert failure is not None and failure.reason.endswith(".")
    return failure


def test_a_clean_unload_is_no_failure() -> None:
    assert explain_unload_failure("", 0, "mod") is None


def test_a_module_in_use_names_its_users() -> None:
    failure = unload("rmmod: ERROR: Module mod is in use by: one two\n")
    assert failure.kind == "in-use" and "one and two" in failure.reason
    assert "by user" in unload("rmmod: ERROR: Module mod is in use\n", there=ProcModule(holders=("user",))).reason


def test_a_module_held_by_an_open_file_says_by_no_module() -> None:
    failure = unload("rmmod: ERROR: Module mod is in use\n", there=ProcModule(2))
    assert failure.kind == "in-use" and "2 references" in failure.reason and "module_put()" in failure.reason


def test_a_module_without_exit_function_says_so() -> None:
    busy = "rmmod: ERROR: could not remove module mod: Device or resource busy\n"
    assert unload(busy, has_exit=False, there=ProcModule(0)).kind == "no-exit"
    assert unload(busy, there=ProcModule(holders=("[permanent]",))).kind == "no-exit"
    assert unload(busy).kind == "busy"


def test_a_module_that_stays_loading_says_why() -> None:
    busy = "rmmod: ERROR: could not remove module mod: Device or resource busy\n"
    failure = unload(busy, there=ProcModule(1, state="Loading"))
    assert failure.kind == "loading" and "kmlab reset" in failure.reason


def test_an_exit_without_end_says_so() -> None:
    failure = explain_unload_failure("", None, "mod", ProcModule(state="Unloading"))
    assert failure is not None and failure.kind == "unload-hang"


def test_a_module_that_is_not_there_says_so() -> None:
    assert unload("rmmod: ERROR: Module mod is not currently loaded\n").kind == "not-loaded"


def enosys(source: str, release: str = RELEASE, config: dict[str, str] | None = None) -> Failure:
    failure = explain_load_failure(
        insmod("Function not implemented"),
        1,
        ["mod: begins"],
        "mod",
        release,
        sources=lambda: [source],
        config=None if config is None else lambda: config,
    )
    assert failure is not None and failure.errno == "ENOSYS"
    return failure


def test_a_stand_in_for_what_the_kernel_is_built_without_is_named_with_its_option() -> None:
    failure = enosys('\tret = gpio_request_one(4, 0, "led");\n')
    assert failure.subject == "CONFIG_GPIOLIB"
    assert "gpio_request_one() does nothing but return that in a kernel without CONFIG_GPIOLIB" in failure.reason
    assert "kernel: generic" in failure.reason
    assert "CONFIG_KPROBES" in enosys("register_kprobe(&kp);", "6.1.0-own", {"GPIOLIB": "y"}).reason


def test_an_option_that_is_on_is_no_cause_of_enosys() -> None:
    assert enosys("gpio_request(4, 0);", config={"GPIOLIB": "y"}).subject is None
    assert enosys("gpio_request(4, 0);", "6.1.0-56-amd64").subject is None
    assert enosys("return -ENOSYS;").subject is None
