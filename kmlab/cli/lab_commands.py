"""Commands about the lab itself: init, doctor, up, reset, down, destroy, and the image cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.shared_options import (
    AllGuests,
    Connect,
    Debug,
    GuestCpus,
    GuestImage,
    GuestKernel,
    GuestMemory,
    GuestNames,
    Json,
    LabFile,
    SecureBoot,
    Verbose,
    open_lab,
    open_lab_for,
    real_host,
    select_guests,
    set_global_options,
    settings_of,
)

if TYPE_CHECKING:
    from kmlab.config.lab import GuestSpec, Lab
    from kmlab.provision.guest import GuestRecord
    from kmlab.provision.images.image_file import MovedImage
    from kmlab.run.documents import GuestsSchema, ImageFile

Architecture = Annotated[
    str | None,
    typer.Option("--arch", help="Use x86_64 or aarch64; default: the host's if the image has it.", metavar="ARCH"),
]


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to write to; default: this one.", metavar="DIR")] = Path(
        "."
    ),
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            help="Image of the default guest; default: debian-12.",
            metavar="IMAGE",
            autocompletion=completion.images,
        ),
    ] = None,
    guest: Annotated[
        str | None,
        typer.Option("--guest", help="Name of the default guest; default: after its image.", metavar="GUEST"),
    ] = None,
    agents: Annotated[
        bool, typer.Option("--agents", help="Write AGENTS.md too; if there is a lab.yaml, write only that.")
    ] = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented lab.yaml with the modules of the folder. If it has none, write a first module too."""
    set_global_options(json=json, debug=debug)
    from json import dumps

    from kmlab.cli.output import render
    from kmlab.common import paths
    from kmlab.common.errors import ConfigError, LabError
    from kmlab.config import catalog
    from kmlab.config.lab import LAB_FILE
    from kmlab.config.starter import SCHEMA_FILE, agents_file, is_built, starter_files
    from kmlab.report.json_schema import schema

    adopted = _modules_in(directory)
    chosen = catalog.load_image(image or "debian-12", None, "--image")
    _check_guest_name(guest)
    files = starter_files(directory.resolve().name, adopted, image=chosen, guest=guest)
    files[SCHEMA_FILE] = dumps(schema("lab"), indent=1) + "\n"
    example = next(iter(adopted.values()), "hello")
    if agents:
        files = agents_file(example) | ({} if (directory / LAB_FILE).exists() else files)
    for path in files:
        if (directory / path).exists():
            raise ConfigError(
                f"{directory / path} already exists", "kmlab init overwrites nothing: choose another folder"
            )
    try:
        for path, text in files.items():
            paths.write_text(directory / path, text)
    except LabError as error:
        raise ConfigError(error.message, "name a folder that you may write to") from None
    if json:
        render.document({"schema": "kmlab.init/1", "written": sorted(files)})
        return
    also = f" for {len(adopted)} module{'s' if len(adopted) > 1 else ''}" if adopted else ""
    render.print_line(
        f"wrote {', '.join(sorted(files))} in {directory}{also}; next, in that folder: kmlab run {example}, "
        f"which first {'builds' if is_built(chosen) else 'downloads'} the image {chosen.name}"
    )


def _modules_in(directory: Path) -> dict[str, str]:
    """Return the modules in and below a folder: their names with their folders, relative to it."""
    from kmlab.config.default_lab import GuestSettings, default_lab
    from kmlab.run.selection import modules_below

    top = directory.resolve()
    if not top.is_dir():
        return {}
    found = modules_below(default_lab(top, GuestSettings()), top)
    places = {module.name: str(module.source.resolve().relative_to(top)) for module in found}
    return {name: place for name, place in places.items() if place.isprintable()}


def _check_guest_name(name: str | None) -> None:
    """Raise ConfigError for a name that no guest may have."""
    from kmlab.common.errors import ConfigError
    from kmlab.config.default_lab import plain_name
    from kmlab.config.yaml.reader import quoted

    if name is not None and plain_name(name, "") != name:
        raise ConfigError(
            f"--guest {quoted(name)} must be lower-case letters, digits and dashes, at most 31 characters",
            "such as debian or noble-2",
        )


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Run the commands that fix the problems.")] = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check this host for what breaks or slows a lab. Print the command that fixes each problem."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.host.hypervisor import doctor as host_doctor
    from kmlab.provision.plan.plan import installed_firmware

    def chosen_firmware(arch: str) -> Path:
        return installed_firmware(arch).code

    findings = host_doctor.examine(chosen_firmware)
    if fix:
        host_doctor.mend(findings)
        findings = host_doctor.examine(chosen_firmware)
    render.findings(findings, as_json=json)
    raise typer.Exit(3 if any(f.state == "broken" for f in findings) else 0)


def selftest(
    images: Annotated[
        list[str] | None,
        typer.Option("--image", help="Try this image too; repeat the option for several.", metavar="IMAGE"),
    ] = None,
    accel: Annotated[str, typer.Option("--accel", help="Use auto, kvm or tcg.", metavar="ACCEL")] = "auto",
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write the page to FILE, and the JSON document beside it.", metavar="FILE"),
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Try kmlab on this machine, with guests of its own. Print one page to paste into an issue."""
    set_global_options(json=json, debug=debug)
    import tempfile
    from json import dumps

    from kmlab.cli.output import render
    from kmlab.common import paths
    from kmlab.config import catalog
    from kmlab.host.hypervisor import doctor as host_doctor
    from kmlab.provision.plan.plan import installed_firmware
    from kmlab.selftest import selftest as tests

    names = list(dict.fromkeys(["debian-12", *(images or [])]))
    for name in names:
        catalog.load_image(name)
    findings = host_doctor.examine(lambda arch: installed_firmware(arch).code)
    with tempfile.TemporaryDirectory(prefix="kmlab-selftest-") as folder, render.reporting() as events:
        tested = tests.selftest(real_host(), names, accel, Path(folder), findings, events)
    page, document = tests.page(tested), tests.document(tested)
    if report is not None:
        paths.write_text(report, page)
        paths.write_text(report.with_suffix(".json"), dumps(document, indent=1) + "\n")
    render.document(document) if json else render.print_line(page.rstrip("\n"))
    raise typer.Exit(0 if tested.ok else 3)


def up(
    guests: GuestNames = None,
    every: AllGuests = False,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Start guests, with the headers of their kernels. A guest that runs and is clean stays as it is."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.provision import lifecycle

    opened = open_lab_for([Path()], lab, settings_of(image, kernel, secure_boot, memory, cpus), connect)
    lifecycle.sweep()
    _start_guests(opened, select_guests(opened, guests, every), json, "kmlab.up/1", fresh=False)


def reset(
    guests: GuestNames = None,
    every: AllGuests = False,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Restore guests to their clean state."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    opened = open_lab(lab, connect)
    _start_guests(opened, select_guests(opened, guests, every), json, "kmlab.reset/1", fresh=True)


def _start_guests(opened: Lab, specs: list[GuestSpec], json: bool, what: GuestsSchema, *, fresh: bool) -> None:
    """Start guests in parallel, and print their records. Without `fresh`, modules that are kept loaded stay."""
    from kmlab.cli.output import render
    from kmlab.provision import lifecycle
    from kmlab.run import parallel

    host = real_host()
    with render.reporting() as events:

        def record(spec: GuestSpec) -> GuestRecord:
            session = lifecycle.guest_session(host, opened, spec, events, fresh=fresh, allow_kept_modules=not fresh)
            with session as guest:
                return guest.record

        records = parallel.map_guests(host, opened, specs, record, events)
    render.guests(opened, records, as_json=json, what=what)


def down(
    guests: GuestNames = None,
    every: AllGuests = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop guests. The next start restores them clean."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision import cache, lifecycle

    opened, host = open_lab(lab), real_host()
    names = cache.guest_names(opened) if every else [spec.name for spec in select_guests(opened, guests)]
    with render.reporting() as events:
        stopped = [name for name in names if lifecycle.take_down(host, opened, name, events)]
    render.document({"schema": "kmlab.down/1", "stopped": stopped}) if json else render.print_line(
        f"stopped: {', '.join(stopped) or 'nothing was running'}"
    )


def destroy(
    guests: GuestNames = None,
    all_state: Annotated[bool, typer.Option("--all-state", help="Remove keys and cached bases too.")] = False,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove the whole lab: processes, disks, sockets."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision import lifecycle

    opened, host = open_lab(lab), real_host()
    with render.reporting() as events:
        destroyed = lifecycle.destroy_lab(host, opened, guests or [], all_state=all_state, report=events)
    render.document({"schema": "kmlab.destroy/1", "destroyed": destroyed}) if json else render.print_line(
        f"destroyed: {', '.join(destroyed) or 'there was nothing'}"
    )


def image_list(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """List the images that a lab can use. Show which of them are in the cache."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.config.lab import find_lab
    from kmlab.provision import cache

    file = lab or find_lab(Path.cwd())
    render.images(cache.list_images(file.parent if file else None), as_json=json)


def image_pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images from the catalogue; default: the lab's images.",
            metavar="IMAGE",
            autocompletion=completion.images,
        ),
    ] = None,
    arch: Architecture = None,
    lab: LabFile = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Download the newest published images, and verify them."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError
    from kmlab.config.lab import find_lab
    from kmlab.provision import lifecycle

    host = real_host()
    has_lab = lab is not None or find_lab(Path.cwd()) is not None
    opened = open_lab(lab) if has_lab or not names else None
    if arch and not names:
        raise ConfigError("--arch needs the name of an image", "name one, or set image: {name: …, arch: …} in lab.yaml")
    pulled: list[ImageFile] = []
    with render.reporting() as events:
        for name in names or []:
            beside = opened.folder if opened else None
            path = lifecycle.catalogue_image(host, name, opened, beside, events, arch=arch, refresh=True)
            pulled.append({"name": name, "path": str(path)})
        for spec in opened.guests.values() if opened and not names else []:
            assert opened is not None
            path = lifecycle.guest_image(host, opened, spec, events, refresh=True)
            pulled.append({"name": path.parent.name, "path": str(path)})
    if json:
        render.document({"schema": "kmlab.pull/1", "images": pulled})
    for image in pulled if not json else []:
        render.print_line(image["path"])


def image_build(
    name: Annotated[
        str, typer.Argument(help="An image of the catalogue.", metavar="IMAGE", autocompletion=completion.images)
    ],
    arch: Architecture = None,
    lab: LabFile = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Build an image from its distribution's signed packages."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import render
    from kmlab.config.lab import find_lab
    from kmlab.provision import lifecycle

    file = lab or find_lab(Path.cwd())
    with render.reporting() as events:
        path = lifecycle.build_image(real_host(), name, file.parent if file else None, events, arch)
    render.document({"schema": "kmlab.image/1", "name": name, "path": str(path)}) if json else render.print_line(
        str(path)
    )


def image_kernels(
    name: Annotated[
        str, typer.Argument(help="An image of the catalogue.", metavar="IMAGE", autocompletion=completion.images)
    ],
    arch: Architecture = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the kernels that `kernel:` can name for an image. Each has headers in the image's archive."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.config.lab import find_lab
    from kmlab.provision import lifecycle

    file = lab or find_lab(Path.cwd())
    with render.reporting() as events:
        releases, own = lifecycle.available(real_host(), name, file.parent if file else None, events, arch)
    render.kernels(name, releases, own, as_json=json)


def image_export(
    name: Annotated[
        str, typer.Argument(help="An image in the cache.", metavar="IMAGE", autocompletion=completion.images)
    ],
    file: Annotated[Path, typer.Argument(help="The file to write.", metavar="FILE")],
    arch: Architecture = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a cached image to one file, for another machine."""
    set_global_options(json=json, debug=debug)
    from kmlab.config.lab import find_lab
    from kmlab.provision.images import image_file

    beside = lab or find_lab(Path.cwd())
    _moved(image_file.export_image(name, file, beside.parent if beside else None, arch), json)


def image_import(
    file: Annotated[Path, typer.Argument(help="A file that `kmlab image export` wrote.", metavar="FILE")],
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add an exported image to the cache. Guests boot it, so import only files that you trust."""
    set_global_options(json=json, debug=debug)
    from kmlab.config.lab import find_lab
    from kmlab.provision.images import image_file

    beside = lab or find_lab(Path.cwd())
    _moved(image_file.import_image(file, beside.parent if beside else None), json)


def _moved(image: MovedImage, json: bool) -> None:
    from kmlab.cli.output import render

    if image.note:
        render.note(f"{image.name}: {image.note}")
    if json:
        render.document({"schema": "kmlab.image/1", "name": image.name, "path": str(image.path)})
    else:
        render.print_line(str(image.path))


def image_verify(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Verify the cached images again. Compare them with recorded digests and publishers' signatures."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.config.lab import find_lab
    from kmlab.provision import cache

    file = lab or find_lab(Path.cwd())
    with render.reporting() as events:
        files = cache.verify(events, file.parent if file else None)
    render.verified(files, as_json=json)
    raise typer.Exit(3 if any(problem for _, problem in files) else 0)


def image_prune(lab: LabFile = None, json: Json = False, debug: Debug = False) -> None:
    """Remove every cached file that no guest uses."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.provision import cache

    removed, freed = cache.prune()
    render.pruned(removed, freed, as_json=json)
