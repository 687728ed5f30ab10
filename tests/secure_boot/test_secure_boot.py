"""A guest with Secure Boot, told with fake doors: its key, its checkpoint, what a run signs and what is refused.

The fake guest's kernel reads the store of UEFI variables that virt-firmware wrote, and checks real signatures.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmlab.common import paths
from kmlab.common.errors import ConfigError, GuestUnreachable, LabError
from kmlab.common.events import Deadline, Event, Note, silent
from kmlab.config.lab import Lab, load_lab
from kmlab.host.disk import varstore
from kmlab.host.hypervisor.accel import Acceleration
from kmlab.host.key_files import load_pair, save_pair
from kmlab.host.process import command
from kmlab.kernel.signing.pkcs7 import make_key_pair, sign_module
from kmlab.kernel.signing.signature import Verdict, read_signature, verify
from kmlab.provision import lifecycle
from kmlab.provision.guest import read_record
from kmlab.provision.plan import lab_key
from kmlab.run import run
from kmlab.run.result import RunResult
from kmlab.secure_boot.matrix import Cell, document, lines, run_matrix
from kmlab.testing import Act, FakeModule, World, module_image
from tests.places import TEST_DATA

TEMPLATE = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
LAB = """\
name: fake
guests:
  secure: {image: debian-12, memory: 256M, secure_boot: true}
  plain: {image: debian-12, memory: 256M}
build: guest
"""


@pytest.fixture
def lab(xdg: Path) -> Lab:
    folder = xdg / "lab" / "hello"
    folder.mkdir(parents=True)
    (folder / "Kbuild").write_text("obj-m := hello.o\n")
    (xdg / "lab" / "lab.yaml").write_text(LAB)
    return load_lab(xdg / "lab" / "lab.yaml")


@pytest.fixture
def world() -> Iterator[World]:
    with World(FakeModule(name="hello", load=Act(kernel=("Hello",), taint=1 << 12))) as made:
        yield made


def go(lab: Lab, world: World, guest: str = "secure", **options: object) -> RunResult:
    chosen = run.Options(**options)  # type: ignore[arg-type]
    return run.run(world.host, lab, lab.guest(guest), lab.module_for(lab.folder / "hello"), chosen, silent)


def keys(lab: Lab) -> Path:
    return lifecycle.lab_files(lab).keys


def delivered(world: World) -> bytes:
    (machine,) = [m for m in world.machines.values() if m.runs and m.mok is not None]
    return machine.files["hello", "hello.ko"]


def test_a_run_makes_the_key_enrols_it_and_signs(lab: Lab, world: World) -> None:
    result = go(lab, world)
    assert (result.outcome, result.reason) == ("pass", None)
    assert [s.name for s in result.steps] == ["sync", "build", "sign", "load", "unload"]
    pair = load_pair(keys(lab) / "mok.key", keys(lab) / "mok.der")
    assert verify(delivered(world), pair.certificate) is Verdict.VALID
    assert stat.S_IMODE((keys(lab) / "mok.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys(lab).stat().st_mode) == 0o700


def test_without_secure_boot_there_is_no_key_and_no_signature(lab: Lab, world: World) -> None:
    result = go(lab, world, "plain")
    assert [s.name for s in result.steps] == ["sync", "build", "load", "unload"]
    assert not keys(lab).exists()


def test_both_stand_on_one_base_and_each_has_a_checkpoint(lab: Lab, world: World) -> None:
    go(lab, world)
    go(lab, world, "plain")
    assert world.asked.count("build-image") == 1
    secure, plain = (read_record(lifecycle.lab_files(lab).guest(name)) for name in ("secure", "plain"))
    assert secure and plain
    assert secure.base == plain.base
    assert secure.checkpoint != plain.checkpoint
    assert "Secure Boot" in secure.firmware


def test_another_key_makes_the_checkpoint_stale(lab: Lab, world: World) -> None:
    go(lab, world)
    paths.remove_tree(keys(lab))
    world.asked.clear()
    assert go(lab, world).outcome == "pass"
    assert world.asked.count("save") == 1
    assert "start" in world.asked
    world.asked.clear()
    go(lab, world, fresh=True)
    assert "save" not in world.asked


def test_what_is_refused_is_told_apart(lab: Lab, world: World, tmp_path: Path) -> None:
    unsigned = go(lab, world, sign="no")
    assert (unsigned.outcome, [s.name for s in unsigned.steps][-1]) == ("load-failed", "load")
    assert unsigned.reason and "hello was refused: it is not signed" in unsigned.reason
    wrong = go(lab, world, sign="wrong-key")
    assert wrong.outcome == "load-failed"
    assert wrong.reason and "'kmlab wrong key" in wrong.reason and "not enrolled" in wrong.reason
    pair = load_pair(keys(lab) / "mok.key", keys(lab) / "mok.der")
    signed = sign_module(module_image("hello"), pair.key, pair.certificate)
    world.modules["hello"] = FakeModule(
        name="hello", images={"hello.ko": signed.replace(b"license=GPL", b"license=BSD")}
    )
    go(lab, world, "plain")  # ends nothing of the other guest's
    altered = go(lab, world, sign="no", fresh=True)
    assert altered.reason and "altered after" in altered.reason and "build it again" in altered.reason
    assert go(lab, world, fresh=True).outcome == "pass", "signing replaces the signature that no longer fits"


def test_a_stripped_module_is_known_by_its_build_id(lab: Lab, tmp_path: Path) -> None:
    image = (TEST_DATA / "ko/frames.ko").read_bytes()
    files = lifecycle.lab_files(lab)
    signer = lab_key.lab_signer(files, lab.name, None)
    (tmp_path / "frames.ko").write_bytes(signer.sign(image, "frames.ko"))
    assert not lab_key.was_stripped(files, image), "this is the module as it was before it was signed"
    subprocess.run(["strip", "--strip-debug", tmp_path / "frames.ko"], check=True)
    stripped = (tmp_path / "frames.ko").read_bytes()
    assert read_signature(stripped) is None
    assert lab_key.build_id(stripped) == lab_key.build_id(image)
    assert lab_key.was_stripped(files, stripped)


def test_no_sign_loads_what_make_left_even_where_the_guest_has_it_signed(lab: Lab, world: World) -> None:
    assert go(lab, world).outcome == "pass"
    assert go(lab, world, sign="no").outcome == "load-failed"
    assert go(lab, world).outcome == "pass"


def test_sign_with_a_file_signs_anywhere(lab: Lab, world: World, tmp_path: Path) -> None:
    save_pair(*make_key_pair("mine"), tmp_path / "mine")
    result = go(lab, world, "plain", sign=str(tmp_path / "mine" / "mok.key"))
    assert "sign" in [s.name for s in result.steps]
    assert next(s.detail for s in result.steps if s.name == "sign").startswith("mine: ")
    with pytest.raises(ConfigError, match="cannot read this key"):
        go(lab, world, "plain", sign=str(tmp_path / "absent"))


def test_a_guest_that_comes_up_without_the_key_is_an_error(
    lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = lab_key.ensure_pair(dataclasses.replace(lifecycle.lab_files(lab), root=lab.folder / "other"), "other")
    real = varstore.make_store
    monkeypatch.setattr(varstore, "make_store", lambda t, c, o, d, **k: real(t, other.certificate, o, d, **k))
    result = go(lab, world)
    assert result.outcome == "error"
    assert result.reason and "has not loaded the lab's certificate" in result.reason


@pytest.mark.parametrize("enforces", ["sig_enforce", "lockdown"])
def test_secure_boot_is_enforced_by_either_setting_of_the_kernel(lab: Lab, world: World, enforces: str) -> None:
    """Ubuntu's kernels 5.4 to 5.15 lock down, and leave sig_enforce at N."""
    world.enforces = (enforces,)
    assert go(lab, world).outcome == "pass"
    unsigned = go(lab, world, sign="no")
    assert (unsigned.outcome, unsigned.failure) == ("load-failed", "signature")
    assert unsigned.reason and "is not signed" in unsigned.reason


def test_a_kernel_that_enforces_nothing_is_an_error(lab: Lab, world: World) -> None:
    world.enforces = ()
    result = go(lab, world)
    assert result.outcome == "error"
    assert (
        result.reason
        and "without enforcing Secure Boot: firmware on, sig_enforce False, lockdown none" in result.reason
    )


def test_a_firmware_that_stays_silent_is_an_error_at_once_and_says_why(
    lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(lab, world, "plain")
    world.acceleration = Acceleration("tcg", "a test")  # where SMM is always there
    world.refusals["shell"] = GuestUnreachable("no server listens")
    world.silent = True
    monkeypatch.setattr("kmlab.virt.firmware.FIRST_LINE_SECONDS", 0.1)
    result = go(lab, world)
    assert result.outcome == "error"
    assert result.reason and "printed nothing" in result.reason and "SMM" in result.reason


def test_an_exercise_that_lockdown_stops_is_told_so(lab: Lab, world: World) -> None:
    denied = Act(code=1, error="cat: /sys/kernel/debug/hello: Operation not permitted\n")
    world.modules["hello"] = FakeModule(name="hello", exercise=denied)
    result = go(lab, world, exercise="cat /sys/kernel/debug/hello")
    assert result.outcome == "test-failed"
    assert result.reason and "locked down, which closes most of debugfs" in result.reason
    plain = go(lab, world, "plain", exercise="cat /sys/kernel/debug/hello")
    assert plain.reason and "locked down" not in plain.reason


def test_a_run_warns_of_a_key_that_others_can_read(lab: Lab, world: World) -> None:
    go(lab, world)
    (keys(lab) / "mok.key").chmod(0o644)
    events: list[Event] = []
    module = lab.module_for(lab.folder / "hello")
    run.run(world.host, lab, lab.guest("secure"), module, run.Options(), events.append)
    assert any("other users can read" in event.text for event in events if isinstance(event, Note))


# --- the key pair --------------------------------------------------------------------------------------------------


def test_an_adopted_key_stays_where_it_is(lab: Lab, tmp_path: Path) -> None:
    mine = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    files = lifecycle.lab_files(lab)
    pair, aside = lab_key.adopt_pair(mine.key, None, files, None)
    assert aside is None
    assert (files.keys / "mok.key").resolve() == mine.key
    assert (files.keys / "mok.der").read_bytes() == pair.der
    assert lab_key.lab_signer(files, lab.name, None).pair.certificate == pair.certificate
    assert lab_key.adopt_pair(mine.key, mine.certificate, files, None)[1] is None, "twice is the same as once"
    lifecycle.destroy_lab(World().host, lab, (), all_state=True, report=silent)
    assert not files.keys.exists()
    assert mine.key.is_file(), "what is not kmlab's is not destroyed"


def test_the_pair_before_an_adopted_one_is_kept_until_all_is_destroyed(lab: Lab, tmp_path: Path) -> None:
    files = lifecycle.lab_files(lab)
    own = lab_key.lab_signer(files, lab.name, None).pair
    mine = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    _, aside = lab_key.adopt_pair(mine.key, None, files, None)
    assert aside is not None and load_pair(aside / "mok.key", aside / "mok.der").certificate == own.certificate
    assert lab_key.adopt_pair(aside / "mok.key", None, files, None)[0].certificate == own.certificate, "and back"
    lifecycle.destroy_lab(World().host, lab, (), all_state=True, report=silent)
    assert not aside.exists()


def test_an_adopted_key_that_is_gone_is_said_and_another_one_can_be_given(lab: Lab, tmp_path: Path) -> None:
    mine, other = (save_pair(*make_key_pair(name), tmp_path / name) for name in ("mine", "other"))
    files = lifecycle.lab_files(lab)
    lab_key.adopt_pair(mine.key, None, files, None)
    mine.key.unlink()
    with pytest.raises(ConfigError, match=f"{mine.key}: the lab's key is missing"):
        lab_key.ensure_pair(files, lab.name)
    assert lab_key.adopt_pair(other.key, None, files, None)[1] is not None
    assert lab_key.ensure_pair(files, lab.name).key.resolve() == other.key


def test_the_certificate_is_found_beside_the_key(tmp_path: Path) -> None:
    for key, certificate in (("MOK.priv", "MOK.der"), ("mok.key", "mok.pub"), ("signing_key.pem", "signing_key.x509")):
        (tmp_path / certificate).write_text("")
        assert lab_key.certificate_beside(tmp_path / key) == tmp_path / certificate
    assert lab_key.certificate_beside(tmp_path / "alone.key") is None


def test_the_private_key_is_in_no_file_of_the_cache_the_guest_or_the_run(lab: Lab, world: World, xdg: Path) -> None:
    result = go(lab, world)
    key = load_pair(keys(lab) / "mok.key", keys(lab) / "mok.der").key
    prime = key.private_numbers().p.to_bytes(128, "big")
    pem = (keys(lab) / "mok.key").read_bytes().splitlines()[3]
    found = [
        path
        for top in (xdg, result.directory)
        for path in sorted(Path(str(top)).rglob("*"))
        if path.is_file() and keys(lab) not in path.parents and any(n in path.read_bytes() for n in (prime, pem))
    ]
    assert found == []


# --- the store of variables ----------------------------------------------------------------------------------------


def test_the_store_has_the_certificate_and_the_template_is_left_alone(tmp_path: Path) -> None:
    pair = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    before = TEMPLATE.read_bytes()
    varstore.make_store(TEMPLATE, pair.certificate, tmp_path / "vars.fd", Deadline(30))
    content = (tmp_path / "vars.fd").read_bytes()
    assert pair.certificate.read_bytes() in content and "MokList".encode("utf-16-le") in content
    assert len(content) == len(before) and TEMPLATE.read_bytes() == before
    assert stat.S_IMODE((tmp_path / "vars.fd").stat().st_mode) == 0o600


CA_2023 = b"Microsoft UEFI CA 2023"


def test_a_template_without_microsoft_s_certificate_of_2023_gets_it(tmp_path: Path) -> None:
    """The certificate of 2011 expired in 2026, and new boot loaders are signed with the one of 2023 alone."""
    pair = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    assert CA_2023 not in TEMPLATE.read_bytes()
    varstore.make_store(TEMPLATE, pair.certificate, tmp_path / "once.fd", Deadline(30))
    once = (tmp_path / "once.fd").read_bytes()
    assert once.count(CA_2023) == 1
    varstore.make_store(tmp_path / "once.fd", pair.certificate, tmp_path / "twice.fd", Deadline(30))
    assert (tmp_path / "twice.fd").read_bytes().count(CA_2023) == 1


def test_a_template_without_keys_gets_microsoft_s_and_the_lab_s(tmp_path: Path) -> None:
    pair = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    empty = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    varstore.make_store(empty, pair.certificate, tmp_path / "vars.fd", Deadline(30), enrolled=False)
    content = (tmp_path / "vars.fd").read_bytes()
    assert pair.certificate.read_bytes() in content and CA_2023 in content
    assert b"Microsoft Corporation UEFI CA 2011" in content
    for variable in ("PK", "KEK", "db", "SecureBootEnable"):
        assert f"{variable}\0".encode("utf-16-le") in content, variable


def test_a_template_in_qcow2_makes_a_store_in_qcow2(tmp_path: Path) -> None:
    pair = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    template, store, raw = (tmp_path / name for name in ("vars.qcow2", "store.qcow2", "store.fd"))
    command.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", TEMPLATE, template], deadline=Deadline(30))
    varstore.make_store(template, pair.certificate, store, Deadline(30), format="qcow2")
    assert store.read_bytes().startswith(b"QFI\xfb")
    command.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", store, raw], deadline=Deadline(30))
    assert pair.certificate.read_bytes() in raw.read_bytes()
    assert len(raw.read_bytes()) == len(TEMPLATE.read_bytes())


def test_a_damaged_template_is_one_clear_error(tmp_path: Path) -> None:
    pair = save_pair(*make_key_pair("mine"), tmp_path / "mine")
    (tmp_path / "bad.fd").write_bytes(os.urandom(1000))
    with pytest.raises(LabError, match=r"cannot enrol .*mok\.der in a copy of .*bad\.fd"):
        varstore.make_store(tmp_path / "bad.fd", pair.certificate, tmp_path / "vars.fd", Deadline(30))


# --- the matrix ----------------------------------------------------------------------------------------------------


def matrix(lab: Lab, world: World, *names: str) -> list[Cell]:
    world.taints_unsigned = True
    wanted, specs = lab.module_for(lab.folder / "hello"), [lab.guest(name) for name in names]
    return run_matrix(world.host, lab, specs, wanted, None, silent, lambda result: None)


def test_the_matrix_has_each_way_of_signing_with_secure_boot_on_and_off(lab: Lab, world: World) -> None:
    cells = matrix(lab, world, "secure")
    assert {(c.spec.name, c.way): c.happened for c in cells} == {
        **{("secure", way): "refused" for way in ("no", "wrong-key", "altered", "stripped")},
        ("secure", "mok"): "loads",
        **{("plain", way): "loads, taints (E)" for way in ("no", "wrong-key", "altered", "stripped", "mok")},
    }
    assert all(cell.ok for cell in cells)
    table = lines(cells)
    assert table[0].split("  ")[-2:] == ["secure, Secure Boot on", "plain, Secure Boot off"]
    assert "10 as expected, 0 not" in table
    assert document(cells)["ok"] is True and len(document(cells)["cells"]) == 10
    reasons = {cell.way: cell.result.reason or "" for cell in cells if cell.happened == "refused"}
    told = {"no": "not signed", "wrong-key": "not enrolled", "altered": "altered after", "stripped": "strip may have"}
    assert all(words in reasons[way] for way, words in told.items()), reasons


def test_a_guest_whose_twin_is_not_in_the_lab_gets_one_for_the_moment(lab: Lab, world: World) -> None:
    alone = dataclasses.replace(lab, guests={"plain": lab.guests["plain"]})
    cells = matrix(alone, world, "plain")
    assert [cell.spec.name for cell in cells[::5]] == ["plain-secure", "plain"]
    assert all(cell.ok for cell in cells)
    assert lifecycle.lab_files(alone).guests() == ["plain"], "and nothing of it is left"


def test_what_was_not_expected_is_marked_in_the_matrix(lab: Lab, world: World) -> None:
    world.modules["hello"] = FakeModule(name="hello", load=Act(code=1, error="insmod: ERROR: No such device\n"))
    cells = matrix(lab, world, "secure")
    assert not document(cells)["ok"]
    assert any("! load-failed (expected: loads)" in line for line in lines(cells))
