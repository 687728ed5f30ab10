"""Define the JSON documents that commands print, as types: mypy checks the output, `kmlab schema` shows them.

Each has a literal `schema`, the name and the version of the document. A later version may add keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, TypedDict, get_args

from kmlab.config.lab import Outcome
from kmlab.kernel.ktap.case_results import Status
from kmlab.kernel.log.records import LEVELS
from kmlab.provision.guest import GuestRecord


class OneOf(NamedTuple):
    """`Annotated[str, OneOf(words)]`: the text is one of these words."""

    words: tuple[str, ...]


class FieldsOf(NamedTuple):
    """`Annotated[Mapping[str, object], FieldsOf(Shape)]`: the keys are the fields of that dataclass."""

    shape: type


OutcomeWord = Annotated[str, OneOf(get_args(Outcome))]
Level = Annotated[str, OneOf(LEVELS)]
Record = Annotated[Mapping[str, object], FieldsOf(GuestRecord)]
"""A guest's record."""


class Failure(TypedDict):
    message: str
    hint: str | None
    """The remedy."""


class ErrorDocument(TypedDict):
    """An error that ended a command."""

    schema: Literal["kmlab.error/1"]
    error: Failure


# --- runs ----------------------------------------------------------------------------------------------------------


class LogRecord(TypedDict):
    """One record of the kernel's log."""

    time: float | None
    """Seconds since boot."""
    level: Level | None
    text: str


class FramePlace(TypedDict):
    """One place in a call trace."""

    function: str
    offset: int | None
    """The kernel's `+0x4b`; an inlined frame has the offset of the frame that it is part of."""
    size: int | None
    module: str | None
    file: str | None
    line: int | None
    inlined: bool


class StackSection(TypedDict):
    """Another stack of the kernel's report, such as who allocated the object."""

    name: str
    task: str | None
    pid: int | None
    cpu: int | None
    age: int | None
    """Jiffies before the report."""
    time: float | None
    """Seconds since boot."""
    module: str | None
    function: str | None
    file: str | None
    line: int | None
    frames: list[FramePlace]


CrashReport = TypedDict(
    "CrashReport",
    {
        "kind": Annotated[str, OneOf((*get_args(Outcome), "load-refused"))],
        "class": str,
        "title": str,
        "module": str | None,
        "function": str | None,
        "file": str | None,
        "line": int | None,
        "fingerprint": str,
        "task": str | None,
        "cpu": int | None,
        "truncated": bool,
        "reason": str | None,
        "frames": list[FramePlace],
        "sections": list[StackSection],
    },
)


class Said(TypedDict):
    """One error or warning of the compiler or modpost, or an expectation of a test that does not hold."""

    file: str | None
    line: int | None
    column: int | None
    severity: Annotated[str, OneOf(("error", "warning"))]
    message: str


class CaseReport(TypedDict):
    """One case of a test."""

    suite: str
    """The names of its groups, joined by dots; empty if it has none."""
    name: str
    status: Annotated[str, OneOf(get_args(Status))]
    reason: str | None
    """Why it failed, crashed or was skipped."""
    file: str | None
    """The place of its first failed expectation, relative to the module's folder."""
    line: int | None


class TestReport(TypedDict):
    """The results of all tests of a run."""

    cases: list[CaseReport]
    problems: list[str]
    """Why the test output is incomplete or contradicts itself; a sentence each."""


class Taint(TypedDict):
    before: list[str]
    after: list[str]


class Modules(TypedDict):
    before: list[str]
    after: list[str] | None
    """null: the guest died during the run."""


class StepDone(TypedDict):
    name: str
    outcome: Annotated[str, OneOf(("ok", "failed", "hang", "lost", "skipped"))]
    began: float
    """Seconds after the run's start."""
    seconds: float
    detail: str


class GuestPart(TypedDict):
    name: str
    began: float
    """Seconds after the run's start."""
    seconds: float


class CollectedEntry(TypedDict):
    path: str
    """In the guest."""
    file: str
    """In the folder of the run."""
    bytes: int


class BoundDriver(TypedDict):
    module: str
    bus: str
    name: str
    devices: list[str]
    """Those that were bound to it, after the load or after the exercise."""


class ExerciseDone(TypedDict):
    name: str
    outcome: str
    """ok, failed, hang or lost."""
    code: int | None
    """null if it did not end."""
    seconds: float


class Artifacts(TypedDict):
    directory: str | None
    """The folder of the run; the other keys name files in it."""
    console: str | None
    kernel_log: str | None
    build_log: str | None
    vmcore: str | None


class CoverageReport(TypedDict):
    """How much of a module ran."""

    lines: int
    """Lines with code."""
    ran: int


class Result(TypedDict):
    """The run of one module in one guest."""

    module: str
    source: str
    """The module's folder, relative to the folder of lab.yaml if it lies below."""
    guest: str
    kernel: str | None
    """null: the guest was never reached."""
    outcome: OutcomeWord
    expected: OutcomeWord | list[OutcomeWord]
    ok: bool
    """Whether the run is what lab.yaml expects."""
    unmet: list[str]
    """A sentence for each other expectation that was not met."""
    title: str | None
    """The run in one line."""
    crashes: list[CrashReport]
    notes: list[str]
    """What the findings mean for the rest of the run; a sentence each."""
    reason: str | None
    failure: str | None
    """The kind of a load-failed, as a word for programs."""
    diagnostics: list[Said]
    tests: TestReport
    """The results of the tests that the module, KUnit or the exercise ran."""
    taint: Taint
    taint_set_by: Mapping[str, str]
    """The step after which each new flag was first seen."""
    modules: Modules
    log: list[LogRecord]
    """Oldest first."""
    log_truncated: int
    """The number of records that are not in `log`."""
    steps: list[StepDone]
    exercises: list[ExerciseDone]
    drivers: list[BoundDriver]
    """The drivers that the modules registered."""
    collected: list[CollectedEntry]
    coverage: CoverageReport | None
    """With --coverage; null without."""
    """Files of the guest that lab.yaml's `collect` names."""
    guest_parts: list[GuestPart]
    """Where the time went until the guest could be used."""
    guest_survived: bool
    seconds: float
    artifacts: Artifacts


class GridColumn(TypedDict):
    guest: str
    kernel: str | None


class GridCell(TypedDict):
    outcome: OutcomeWord
    ok: bool


class GridRow(TypedDict):
    module: str
    cells: list[GridCell | None]
    """One for each column; null where the module did not run."""


class GridGroup(TypedDict):
    """Runs with the same outcome for the same reason."""

    fingerprint: str
    outcome: OutcomeWord
    modules: list[str]
    guests: list[str]
    ok: bool
    sentence: str


class GridPage(TypedDict):
    """Modules times kernels."""

    columns: list[GridColumn]
    rows: list[GridRow]
    groups: list[GridGroup]


class _Runs(TypedDict):
    schema: Literal["kmlab.run/1"]
    results: list[Result]


class RunRow(TypedDict):
    """What names a run on every machine."""

    module: str
    guest: str


class ShardReport(TypedDict):
    """Which part of a plan this is."""

    number: int
    """From 1."""
    count: int
    planned: list[RunRow]
    """The rows of the whole plan, of all shards."""


class RunKeys(TypedDict, total=False):
    """What a document of runs may have in addition."""

    grid: GridPage
    """The table of `test`, `merge` and `run --kernels`."""
    shard: ShardReport
    """Only of `test --shard`."""
    missing: list[RunRow]
    """Only of `merge`: rows of the plan without a result."""


class RunDocument(_Runs, RunKeys):
    """The runs of a command."""


class UnreadLines(TypedDict):
    """The lines of a log that look like kernel output and could not be read."""

    lines: int
    first: str


class CrashesDocument(TypedDict):
    """The crashes in a saved kernel log."""

    schema: Literal["kmlab.crashes/1"]
    crashes: list[CrashReport]
    notes: list[str]
    """How the log was read, and why source lines are missing; a sentence each."""
    unread: UnreadLines | None


# --- guests --------------------------------------------------------------------------------------------------------


GuestsSchema = Literal["kmlab.up/1", "kmlab.reset/1"]


class GuestsDocument(TypedDict):
    """Guests that were started or restored."""

    schema: GuestsSchema
    lab: str
    guests: list[Record]


class Accelerator(TypedDict):
    name: str
    why: str


class _State(TypedDict):
    name: str
    state: Annotated[str, OneOf(("stopped", "clean", "kept", "busy", "dirty"))]
    in_use: bool


class GuestState(_State, total=False):
    record: Record
    """The record of a guest that was started."""


class StatusDocument(TypedDict):
    """The state of a lab's guests."""

    schema: Literal["kmlab.status/1"]
    lab: str
    accel: Accelerator | None
    guests: list[GuestState]


class LogDocument(TypedDict):
    """A guest's kernel log since its start."""

    schema: Literal["kmlab.log/1"]
    guest: str
    log: list[LogRecord]


class SshDocument(TypedDict):
    """A command that ran in a guest."""

    schema: Literal["kmlab.ssh/1"]
    guest: str
    code: int | None
    output: str
    """The output of both streams, in order."""


CpDocument = TypedDict("CpDocument", {"schema": Literal["kmlab.cp/1"], "from": list[str], "to": str})
CpDocument.__doc__ = "Files that were copied."


class GdbDocument(TypedDict):
    """The output of gdb's commands."""

    schema: Literal["kmlab.gdb/1"]
    guest: str
    modules: list[str]
    """The modules whose symbols gdb had."""
    code: int
    output: str


class SshConfigDocument(TypedDict):
    """The OpenSSH configuration of guests."""

    schema: Literal["kmlab.ssh-config/1"]
    file: str
    """Where it is, for `ssh -F FILE GUEST`, or `Include FILE` in ~/.ssh/config."""
    text: str


class ConsoleDocument(TypedDict):
    """The device of a guest's console."""

    schema: Literal["kmlab.console/1"]
    guest: str
    tty: str


class DeviceEntry(TypedDict):
    name: str
    device: str
    """Its kind and options, as in lab.yaml."""
    address: str | None
    """The guest's PCI address of it, or `usb` and the port of the root hub; null if kmlab does not know it."""
    tty: str | None
    """The pty of this host at its other end."""


class DevicesDocument(TypedDict):
    """The devices that a running guest has beside those of every guest."""

    schema: Literal["kmlab.devices/1"]
    guest: str
    changed: str | None
    """The device that the command added or removed."""
    devices: list[DeviceEntry]
    crashes: list[CrashReport]
    """What the guest's kernel reported in the seconds after the change."""


class DownDocument(TypedDict):
    """Guests that were stopped."""

    schema: Literal["kmlab.down/1"]
    stopped: list[str]


class DestroyDocument(TypedDict):
    """The names of what was removed."""

    schema: Literal["kmlab.destroy/1"]
    destroyed: list[str]


# --- the host ------------------------------------------------------------------------------------------------------


class HostFinding(TypedDict):
    what: str
    state: Annotated[str, OneOf(("fine", "slow", "broken"))]
    detail: str
    mend: list[str]
    """A command, word by word; empty if there is nothing to do."""


class DoctorDocument(TypedDict):
    """Checks of this host: what breaks or slows a lab."""

    schema: Literal["kmlab.doctor/1"]
    findings: list[HostFinding]


class SelftestCheck(TypedDict):
    what: str
    ok: bool
    seconds: float
    detail: str


class SelftestDocument(TypedDict):
    """What was tried on this host, without personal data."""

    schema: Literal["kmlab.selftest/1"]
    ok: bool
    host: dict[str, str]
    """Facts about the host: system, kernel, versions, firmware, accelerator."""
    findings: list[HostFinding]
    """What doctor found; without commands."""
    checks: list[SelftestCheck]


class CacheKeyDocument(TypedDict):
    """What a CI server should cache for a lab."""

    schema: Literal["kmlab.cache-key/1"]
    key: str
    paths: list[str]
    """Folders and files to keep; the ssh key is among them, because images are built for it."""


class InitDocument(TypedDict):
    """Files that were written."""

    schema: Literal["kmlab.init/1"]
    written: list[str]


class ValidateDocument(TypedDict):
    """What is wrong with a lab.yaml."""

    schema: Literal["kmlab.validate/1"]
    lab: str
    """The path of lab.yaml."""
    guests: list[str]
    modules: list[str]
    problems: list[Failure]


class SchemaName(TypedDict):
    name: str
    about: str


class SchemasDocument(TypedDict):
    """The names that `kmlab schema` accepts."""

    schema: Literal["kmlab.schemas/1"]
    schemas: list[SchemaName]


# --- images --------------------------------------------------------------------------------------------------------


class ImageEntry(TypedDict):
    name: str
    family: str
    release: str
    architectures: list[str]
    architecture: str
    """The default architecture."""
    cached_bytes: int
    trust: Annotated[str, OneOf(("packages", "signature", "digest", "nothing"))]
    """How the image is verified."""
    serial: str | None
    """The pinned release."""


class ImagesDocument(TypedDict):
    """The images that a lab can use."""

    schema: Literal["kmlab.images/1"]
    images: list[ImageEntry]


class ImageFile(TypedDict):
    name: str
    path: str


class PullDocument(TypedDict):
    """Images that were downloaded into the cache."""

    schema: Literal["kmlab.pull/1"]
    images: list[ImageFile]


class ImageDocument(TypedDict):
    """An image that was built."""

    schema: Literal["kmlab.image/1"]
    name: str
    path: str


class KernelEntry(TypedDict):
    release: str
    flavour: str
    version: str
    suite: str


class KernelsDocument(TypedDict):
    """The kernels that `kernel:` can name for an image."""

    schema: Literal["kmlab.kernels/1"]
    image: str
    default: str
    """The release of the image's own kernel."""
    kernels: list[KernelEntry]


class BuiltKernelEntry(TypedDict):
    key: str
    release: str
    """The output of `uname -r`."""
    flavour: str
    image: str
    arch: str
    source: str
    """The source package and its version."""
    compiler: str
    seconds: float
    """How long the build took."""
    path: str
    """The folder with its packages."""


class FlavourEntry(TypedDict):
    name: str
    about: str
    """What a kernel of this flavour finds."""


class BuiltKernelsDocument(TypedDict):
    """The kernels that kmlab has built from the distribution's sources, and the flavours that it can build."""

    schema: Literal["kmlab.built-kernels/1"]
    kernels: list[BuiltKernelEntry]
    flavours: list[FlavourEntry]


class VerifiedFile(TypedDict):
    name: str
    problem: str | None
    """null: the file is unchanged."""


class VerifyDocument(TypedDict):
    """The result of comparing the cache with recorded digests."""

    schema: Literal["kmlab.verify/1"]
    files: list[VerifiedFile]


class PruneDocument(TypedDict):
    """The files that were removed from the cache."""

    schema: Literal["kmlab.prune/1"]
    removed: list[str]
    bytes: int


# --- signatures ----------------------------------------------------------------------------------------------------


class KeyPair(TypedDict):
    name: str
    key_id: str
    sha256: str
    not_after: str


class Enrolment(TypedDict):
    guest: str
    enrolled: bool | None
    what: str


class SignedFile(TypedDict):
    file: str
    replaced: str | None
    """The previous signer."""


class SignDocument(TypedDict):
    """The lab's key, and files that were signed."""

    schema: Literal["kmlab.sign/1"]
    key: KeyPair
    notes: list[str]
    guests: list[Enrolment]
    signed: list[SignedFile]


class LoadCheck(TypedDict):
    guest: str
    loads: bool | None
    """null: only a load can show it."""
    why: str
    remedy: str | None


class ExplainedFile(TypedDict):
    file: str
    module: str | None
    machine: str | None
    release: str | None
    signed: bool
    signer: str | None
    key_id: str | None
    serial: str | None
    digest: str | None
    verdict: Annotated[str, OneOf(("valid", "altered", "wrong-key", "unsigned", "malformed"))] | None
    problem: str | None
    stripped: bool
    compressed: str | None
    guests: list[LoadCheck]


class ExplainDocument(TypedDict):
    """The signers of files, and the guests that would load them."""

    schema: Literal["kmlab.explain/1"]
    files: list[ExplainedFile]


class HostKernel(TypedDict):
    release: str
    arch: str
    vermagic: str | None
    secure_boot: bool
    lockdown: str
    enforces: bool
    """Whether it refuses modules without a good signature."""
    enrolled: list[str]
    """The names of the keys that the owner enrolled (MokListRT)."""
    firmware_keys: list[str]
    pending: bool
    """Whether a key waits to be enrolled at the next boot."""


class WhyFile(ExplainedFile):
    commands: list[str]
    """What mends it, in this order."""


class WhyDocument(TypedDict):
    """Why this host's own kernel would refuse modules."""

    schema: Literal["kmlab.why/1"]
    host: HostKernel
    files: list[WhyFile]


class MatrixCell(TypedDict):
    guest: str
    kernel: str | None
    secure_boot: bool
    way: str
    expected: str
    happened: str
    ok: bool
    reason: str | None
    taint: list[str]
    directory: str | None


class SecureBootDocument(TypedDict):
    """One module signed in every way, loaded with Secure Boot on and off."""

    schema: Literal["kmlab.secure-boot-matrix/1"]
    module: str
    source: str
    ok: bool
    cells: list[MatrixCell]


class TortureCaseReport(TypedDict):
    """One case of a torture."""

    guest: str
    case: str
    """Its name, for --case; `plain` for the ordinary run that comes first."""
    group: str
    what: str
    """What it does; of a group that the guest's kernel does not allow, why it was left out."""
    outcome: str
    """pass, skipped, or as in kmlab.run/1."""
    ok: bool
    failed_call: str | None
    """The call that was made to fail: `function (file:line)`."""
    title: str | None
    reason: str | None
    crashes: list[CrashReport]
    seconds: float
    directory: str | None
    """The evidence of the run in which it went wrong."""
    reproducer: str | None
    """The C program of a case of fuzzing that went wrong: a file of that folder."""


class TortureDocument(TypedDict):
    """What `kmlab torture --json` prints."""

    schema: Literal["kmlab.torture/1"]
    module: str
    seed: int
    ok: bool
    cases: list[TortureCaseReport]


Document = (
    ErrorDocument
    | RunDocument
    | TortureDocument
    | CrashesDocument
    | GuestsDocument
    | StatusDocument
    | LogDocument
    | SshDocument
    | CpDocument
    | SshConfigDocument
    | GdbDocument
    | ConsoleDocument
    | DevicesDocument
    | DownDocument
    | DestroyDocument
    | DoctorDocument
    | SelftestDocument
    | CacheKeyDocument
    | InitDocument
    | ValidateDocument
    | SchemasDocument
    | ImagesDocument
    | PullDocument
    | ImageDocument
    | KernelsDocument
    | BuiltKernelsDocument
    | VerifyDocument
    | PruneDocument
    | SignDocument
    | ExplainDocument
    | WhyDocument
    | SecureBootDocument
)
"""Every document that a command prints."""
