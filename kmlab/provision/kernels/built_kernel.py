"""Provide the kernels that kmlab builds: find them in the cache, or build them from the archive's sources.

The kernel is packed as .deb files, as a local kernel (`kernel: {local: DIR}`), and goes into a base like one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kmlab.common import paths
from kmlab.common.errors import ConfigError
from kmlab.common.events import Deadline, EventSink, Stage, printable
from kmlab.config.kernel_flavours import (
    KernelRequest,
    appended_sources,
    boot_options,
    common_fragment,
    flavour_names,
    modules_fragment,
    parse_request,
    programs,
)
from kmlab.config.lab import GuestSpec, Lab, LocalKernel
from kmlab.host import Host
from kmlab.host.disk import disks
from kmlab.host.process import locks
from kmlab.kernel.build import config_fragment
from kmlab.kernel.build.kernel_releases import SourcePackage, Unmatched
from kmlab.provision.bases.base import ensure_base
from kmlab.provision.bases.toolchain import ensure_toolchain
from kmlab.provision.images.archive_kernel import opened_archive
from kmlab.provision.images.image import ensure_image
from kmlab.provision.images.local_kernel import BuiltKernel, local_packages
from kmlab.provision.kernels.build_root import find_source, make_build_root
from kmlab.provision.kernels.kernel_tree import KernelTree
from kmlab.provision.plan.artifact import LOCK_PATIENCE
from kmlab.provision.plan.plan import Plan, make_plan
from kmlab.provision.plan.source import PackageImageSource

_FORMAT = 1
"""Increased when kernels of older versions of kmlab must not be used any more."""
_SPACE = 8 << 30
FROM_DISTRIBUTION = "from-distribution"


@dataclass(frozen=True, slots=True)
class BuiltKernelRecord:
    """The record of a kernel in the cache: kernel.json."""

    key: str
    asked: str
    """A digest of what was asked for: image, architecture, words of `kernel:`, options."""
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

    @property
    def folder(self) -> Path:
        return paths.kernels() / self.key


def with_built_kernel(host: Host, plan: Plan, report: EventSink) -> Plan:
    """Return the plan with the kernel that kmlab builds for it, if lab.yaml asks for one. Build it if needed."""
    request = parse_request(plan.spec.kernel, plan.lab.folder)
    if request is None:
        if plan.spec.config:
            where = ("guests", plan.spec.name, "config")
            hint = "set `kernel: debug`, or remove `config`"
            raise plan.lab.error(where, "only a kernel that kmlab builds has options", hint)
        return plan
    record = ensure_built_kernel(host, plan, request, report)
    kernel = BuiltKernel(local=record.folder, key=record.key)
    cmdline = f"{boot_options(request)} {plan.spec.cmdline}".rstrip()
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, kernel=kernel, cmdline=cmdline))


def ensure_built_kernel(
    host: Host, plan: Plan, request: KernelRequest, report: EventSink, *, refresh: bool = False
) -> BuiltKernelRecord:
    """Return the kernel's record. Build it if it is not in the cache; `refresh` looks for newer sources first."""
    asked = _asked(plan, request)
    known = next((record for record in list_kernels() if record.asked == asked), None)
    if known is not None and not refresh:
        return known
    if plan.arch != os.uname().machine:
        where = ("guests", plan.spec.name, "kernel")
        message = f"kmlab builds kernels for {os.uname().machine} on this host, but the image is for {plan.arch}"
        raise plan.lab.error(where, message, "build it on such a host, and move it with `kmlab kernel export`")
    if plan.spec.secure_boot:
        where = ("guests", plan.spec.name, "secure_boot")
        raise plan.lab.error(where, "Secure Boot does not start a kernel that kmlab builds", "remove one of them")
    with locks.held(paths.work() / f"kernel-{asked}.lock", plan.spec.name, report, Deadline(LOCK_PATIENCE)):
        known = next((record for record in list_kernels() if record.asked == asked), None)
        return known if known is not None and not refresh else _build(host, plan, request, asked, report)


def list_kernels() -> list[BuiltKernelRecord]:
    """Return the kernels in the cache, newest build last."""
    records = sorted(paths.kernels().glob("*/kernel.json"), key=lambda path: path.stat().st_mtime)
    return [record for record in map(read_record, records) if record is not None]


def read_record(path: Path) -> BuiltKernelRecord | None:
    """Return the record of a kernel; None if it is missing or damaged."""
    about = paths.read_json(path)
    fields = [field.name for field in dataclasses.fields(BuiltKernelRecord)]
    if not isinstance(about, dict) or not all(name in about for name in fields):
        return None
    return BuiltKernelRecord(**{name: about[name] for name in fields})


def plan_build(host: Host, lab: Lab, spec: GuestSpec, kernel: str) -> tuple[Plan, KernelRequest]:
    """Return the plan of a guest with that kernel, and the request. Raise ConfigError if kmlab does not build it."""
    request = parse_request(kernel, lab.folder)
    if request is None:
        names = ", ".join(flavour_names(lab.folder))
        raise ConfigError(f"'{printable(kernel)}' names no flavour that kmlab builds", f"flavours: {names}; 6.12:debug")
    return make_plan(host, lab, dataclasses.replace(spec, kernel=kernel)), request


def read_config(plan: Plan, request: KernelRequest) -> str:
    """Return the whole .config of a kernel that is built, and otherwise the options that it must have."""
    asked = _asked(plan, request)
    known = next((record for record in list_kernels() if record.asked == asked), None)
    if known is not None:
        return (known.folder / "config").read_text(encoding="utf-8", errors="replace")
    return config_fragment.format_fragment(merged_options(plan, request))


def merged_options(plan: Plan, request: KernelRequest) -> dict[str, str]:
    """Return all options that the kernel must have, by their name without CONFIG_."""
    folder = plan.lab.folder
    own = "".join(f"CONFIG_{line.removeprefix('CONFIG_')}\n" for line in plan.spec.config if line != FROM_DISTRIBUTION)
    named = f'CONFIG_LOCALVERSION="-kmlab-{request.flavour.name}"\n# CONFIG_LOCALVERSION_AUTO is not set\n'
    common = "" if FROM_DISTRIBUTION in plan.spec.config else common_fragment(plan.arch, folder)
    return config_fragment.merge_fragments([common, request.flavour.fragment, named, own])


def _asked(plan: Plan, request: KernelRequest) -> str:
    source = plan.source
    image = (source.packages.distribution, source.packages.suite) if isinstance(source, PackageImageSource) else source
    return paths.digest_of(
        _FORMAT,
        plan.image.name,
        image,
        plan.arch,
        sorted(request.words),
        merged_options(plan, request),
        FROM_DISTRIBUTION in plan.spec.config,
        modules_fragment(plan.lab.folder),
        programs(plan.lab.folder),
        appended_sources(plan.lab.folder),
    )


def _build(host: Host, plan: Plan, request: KernelRequest, asked: str, report: EventSink) -> BuiltKernelRecord:
    stock = dataclasses.replace(
        plan, spec=dataclasses.replace(plan.spec, kernel="default", config=(), packages=(), cmdline="", disk=None)
    )
    base = ensure_base(host, stock, report)
    toolchain = ensure_toolchain(base.key, base.release, plan.spec.name, report)
    options = merged_options(plan, request)
    clang = options.get("KMSAN") == "y"
    work = paths.make_folder(paths.kernel_builds() / asked)
    paths.require_space(work, _SPACE, f"building kernel '{plan.spec.kernel}'")
    what = f"building the kernel '{plan.spec.kernel}' from the distribution's sources"
    with Stage(report, plan.spec.name, what) as stage:
        source, packages = _fetch(host, plan, request, clang, work, stage)
        root = work / "root"
        make_build_root(plan.distribution, toolchain, packages, root, stage)
        sources = work / "tree"
        sources.mkdir(exist_ok=True)
        tree = KernelTree(sources, root, plan.arch, clang)
        identity = f"{source.name} {source.version}"
        if (sources / "of").is_file() and (sources / "of").read_text() != identity:
            paths.remove_tree(sources)
            sources.mkdir()
        (sources / "of").write_text(identity)
        tree.unpack(find_source(root, source.name), stage)
        tree.append(appended_sources(plan.lab.folder))
        compiler = tree.compiler()
        tree.configure(options, stage, all_of=_distribution_config(toolchain, base.release, plan))
        tree.make(stage)
        tree.change_options_of_modules(modules_fragment(plan.lab.folder))
        own = plan.lab.folder
        parts = (modules_fragment(own), programs(own), appended_sources(own))
        key = paths.digest_of(_FORMAT, identity, options, parts, compiler, plan.arch)
        final = paths.kernels() / key
        with paths.atomic_folder(final, paths.work()) as folder:
            plan_of_tree = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, secure_boot=False))
            release, _ = local_packages(plan_of_tree, LocalKernel(local=tree.sources), folder, stage, programs(own))
            for scratch in folder.glob("kernel-*"):
                paths.remove_tree(scratch)
            (folder / "config").write_bytes((tree.sources / ".config").read_bytes())
            record = BuiltKernelRecord(
                key=key,
                asked=asked,
                release=release,
                flavour=request.flavour.name,
                image=plan.image.name,
                arch=plan.arch,
                source=identity,
                compiler=compiler,
                seconds=round(stage.seconds, 1),
            )
            paths.write_json(folder / "kernel.json", dataclasses.asdict(record))
        stage.detail = f"{release}, {disks.size_on_disk(final) / 2**20:.0f} MiB"
    paths.remove_tree(work)
    return record


def _fetch(
    host: Host, plan: Plan, request: KernelRequest, clang: bool, work: Path, stage: Stage
) -> tuple[SourcePackage, list[Path]]:
    """Fetch the verified packages of the sources and of the tools, and return them."""
    image = ensure_image(host, plan, stage.report)
    deadline = Deadline(_PATIENCE)

    def report_line(line: str) -> None:
        stage.progress(detail=printable(line, 100))

    distribution = plan.distribution
    with opened_archive(
        host, distribution, plan.image, plan.arch, image, stage.report, deadline, report_line
    ) as archive:
        source = distribution.choose_source(request.words, archive)
        if isinstance(source, Unmatched):
            raise plan.lab.error(("guests", plan.spec.name, "kernel"), source.message, source.hint)
        tools = [*distribution.kernel_build_packages, *(distribution.clang_packages if clang else ())]
        stage.progress(detail=f"fetching {source.name} {source.version}")
        suite = source.suite if source.suite in plan.image.kernel_suites else None
        fetched = archive.fetch([*tools, f"{source.name}={source.version}"], suite, deadline, report_line)
        return source, list(_moved(fetched, work))


_PATIENCE = 1800.0


def _moved(packages: list[Path], work: Path) -> Iterator[Path]:
    folder = work / "packages"
    paths.remove_tree(folder)
    folder.mkdir()
    for package in packages:
        yield package.rename(folder / package.name)


def _distribution_config(toolchain: Path, release: str, plan: Plan) -> str | None:
    """Return the configuration of the distribution's own kernel, if the lab asks for it."""
    if FROM_DISTRIBUTION not in plan.spec.config:
        return None
    config = toolchain / plan.distribution.headers_folder(release) / ".config"
    try:
        return config.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        where = plan.lab.where("guests", plan.spec.name, "config")
        raise ConfigError(f"{where}: the headers of {release} have no .config: {error.strerror}") from None
