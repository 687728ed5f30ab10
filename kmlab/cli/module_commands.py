"""Commands about modules: run, test, build, load, unload, crashes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kmlab.cli.help import completion
from kmlab.cli.options.module_options import (
    Coverage,
    DebugKernel,
    Durations,
    Exercise,
    Fresh,
    Github,
    Jobs,
    Junit,
    Keep,
    Kernels,
    MakeVariables,
    NoSign,
    Params,
    ReportPaths,
    Root,
    ShardWord,
    SignWith,
    Timeline,
    Timeout,
    columns_of,
    options_of,
    report_coverage,
    sign_choice,
    with_coverage,
    with_sources,
)
from kmlab.cli.options.shared_options import (
    AllGuests,
    Compact,
    Connect,
    Debug,
    Directory,
    GuestCpus,
    GuestImage,
    GuestKernel,
    GuestMemory,
    GuestOptions,
    Json,
    LabFile,
    SecureBoot,
    Verbose,
    ask_passphrase,
    check_compact,
    cli_state,
    open_lab,
    open_lab_for,
    real_host,
    select_guests,
    set_global_options,
    settings_of,
)

if TYPE_CHECKING:
    from kmlab.common.errors import KmlabError
    from kmlab.config.lab import GuestSpec, Lab
    from kmlab.host import Host
    from kmlab.report.formats import Reports
    from kmlab.run.documents import RunKeys
    from kmlab.run.parallel import Job
    from kmlab.run.result import RunResult

_KTAP = "Instead of a run, judge the test results in a saved log, as KTAP or TAP; - for stdin."
_MATRIX = "Instead of a normal run, try every way to sign this module, with Secure Boot on and off."


def run(
    directory: Directory,
    guest: GuestOptions = None,
    every: AllGuests = False,
    kernels: Kernels = None,
    debug_kernel: DebugKernel = False,
    jobs: Jobs = None,
    fresh: Fresh = False,
    keep: Keep = False,
    param: Params = None,
    exercise: Exercise = None,
    timeout: Timeout = None,
    root: Root = None,
    make: MakeVariables = None,
    no_sign: NoSign = False,
    sign_with: SignWith = None,
    timeline: Timeline = None,
    report_paths: ReportPaths = None,
    junit: Junit = None,
    coverage: Coverage = None,
    github: Github = False,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    compact: Compact = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a module in guests, and print a verdict.

    The steps are: sync, build, sign if the guest has Secure Boot, load, exercise, unload, judge.
    """
    set_global_options(json=json, debug=debug, verbose=verbose)
    check_compact(compact, json)
    from kmlab.api import LabSession
    from kmlab.cli.output import render
    from kmlab.report import formats as reports
    from kmlab.report import timeline as pictures
    from kmlab.run import parallel

    if timeline:
        pictures.check(timeline)
    files = reports.report_files(report_paths or [], junit)
    settings = settings_of(image, kernel, secure_boot, memory, cpus)
    opened, host = open_lab_for([directory], lab, settings, connect), real_host()
    options = options_of(param, exercise, timeout, fresh=fresh, keep=keep, sign=sign_choice(no_sign, sign_with))
    options = with_coverage(with_sources(options, root, make), coverage)
    guest_names = list(opened.guests) if every else guest or []
    columns = columns_of(opened, kernels)
    module = opened.module_for(directory)
    planned = parallel.jobs(opened, [module], guest_names, columns, debug_kernel=debug_kernel)
    writers = reports.Reports(files)

    def show(result: RunResult) -> None:
        writers.add(result)
        if kernels is not None:
            render.one_line(result)

    with render.reporting() as events:
        session = LabSession(opened, host, events)
        results = session.run_all(planned, options, limit=jobs, on_result=show)
    if timeline:
        pictures.write(timeline, results)
    if coverage:
        report_coverage(coverage, results)
    _end(
        results,
        json,
        compact=compact,
        table=kernels is not None,
        problems=write_reports(writers, results, github=github, json=json),
    )


def test(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders whose modules run; default: the lab's modules.",
            metavar="DIR",
            autocompletion=completion.modules,
        ),
    ] = None,
    guest: GuestOptions = None,
    every: AllGuests = False,
    kernels: Kernels = None,
    debug_kernel: DebugKernel = False,
    jobs: Jobs = None,
    shard: ShardWord = None,
    durations: Durations = None,
    report_paths: ReportPaths = None,
    junit: Junit = None,
    coverage: Coverage = None,
    github: Github = False,
    secure_boot_matrix: Annotated[
        Path | None,
        typer.Option("--secure-boot-matrix", help=_MATRIX, metavar="DIR"),
    ] = None,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    ktap: Annotated[str | None, typer.Option("--ktap", help=_KTAP, metavar="FILE")] = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    compact: Compact = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run every module, or those under DIR, in their guests.

    If lab.yaml has a matrix, use its kernels. Print a table at the end.
    """
    set_global_options(json=json, debug=debug, verbose=verbose)
    check_compact(compact, json)
    from kmlab.api import LabSession
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError
    from kmlab.config.lab import DEFAULTS
    from kmlab.config.run_options import Options
    from kmlab.report import formats as reports
    from kmlab.run import parallel
    from kmlab.run.selection import modules_under

    files = reports.report_files(report_paths or [], junit)
    if ktap is not None:
        if directories or guest or every or kernels or jobs or shard or secure_boot_matrix or lab or connect:
            raise ConfigError(
                "--ktap judges a file and starts no guest", "use only --report, --junit, --github with it"
            )
        _judge_ktap(ktap, reports.Reports(files), github=github, json=json, compact=compact)
    settings = settings_of(image, kernel, secure_boot, memory, cpus)
    opened = open_lab_for(_tested_folders(directories, secure_boot_matrix), lab, settings, connect)
    host = real_host()
    if opened.file == DEFAULTS and not directories:
        directories = [Path()]
    if secure_boot_matrix is not None:
        if files or github:
            raise ConfigError("--secure-boot-matrix writes no report", "remove --report, --junit and --github")
        if shard:
            raise ConfigError("--secure-boot-matrix is not dealt to shards", "remove --shard")
        _secure_boot_matrix(host, opened, secure_boot_matrix, select_guests(opened, guest, every), json)
    guest_names = list(opened.guests) if every else guest or []
    columns = columns_of(opened, kernels) or ([] if guest_names else list(opened.matrix))
    modules = modules_under(opened, directories or [])
    planned = parallel.jobs(opened, modules, guest_names, columns, debug_kernel=debug_kernel)
    # A module may damage the guest silently; without `unused` the next module would be blamed.
    options = with_coverage(Options(ask=ask_passphrase, unused=True), coverage)
    planned, keys = _dealt(planned, shard, durations)
    writers = reports.Reports(files, keys)

    def show(result: RunResult) -> None:
        writers.add(result)
        render.one_line(result)

    with render.reporting() as events:
        session = LabSession(opened, host, events)
        results = session.run_all(planned, options, limit=jobs, on_result=show) if planned else []
    if coverage:
        report_coverage(coverage, results)
    problems = write_reports(writers, results, github=github, json=json)
    _end(results, json, compact=compact, table=True, problems=problems, keys=keys)


def _dealt(planned: list[Job], shard: str | None, durations: list[Path] | None) -> tuple[list[Job], RunKeys]:
    """Return the rows of this shard, and what the JSON document says about that."""
    from kmlab.cli.output import render
    from kmlab.common.errors import ConfigError
    from kmlab.sharding import dealing, stored_results
    from kmlab.sharding.shard import parse_shard

    if shard is None:
        if durations:
            raise ConfigError("--durations needs --shard", "add --shard 2/8, or --shard auto")
        return planned, {}
    part = parse_shard(shard, os.environ)
    earlier = [run for file in durations or () for run in stored_results.read_results(file, Path.cwd()).runs]
    known = {run.row: run.result.seconds for run in earlier}
    mine = dealing.deal(planned, part.total, known)[part.number - 1]
    render.note(f"shard {part}: {len(mine)} of {len(planned)} runs")
    rows = [stored_results.row_json(dealing.row_of(job)) for job in planned]
    return mine, {"shard": {"number": part.number, "count": part.total, "planned": rows}}


def _tested_folders(directories: list[Path] | None, matrix: Path | None) -> Iterator[Path]:
    """Yield the folders of modules that make a lab of defaults possible: the given ones, and those below them."""
    from kmlab.run.selection import module_folders

    given = [matrix] if matrix is not None else directories or [Path()]
    yield from given
    for folder in given:
        yield from module_folders(folder.resolve())


def build(
    directory: Directory,
    guest: GuestOptions = None,
    compile_commands: Annotated[
        bool,
        typer.Option("--compile-commands", help="Build on this host, and write compile_commands.json for editors."),
    ] = False,
    root: Root = None,
    make: MakeVariables = None,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    compact: Compact = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Copy a module to a guest and build it there."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    check_compact(compact, json)
    opened = open_lab_for([directory], lab, settings_of(image, kernel, secure_boot, memory, cpus), connect)
    if compile_commands:
        from kmlab.run.compile_database import in_sandbox

        opened = in_sandbox(opened)
    _steps(directory, guest, opened, json, compact, ("build",), root=root, make=make, database=compile_commands)


def load(
    directory: Directory,
    guest: GuestOptions = None,
    param: Params = None,
    root: Root = None,
    make: MakeVariables = None,
    image: GuestImage = None,
    kernel: GuestKernel = None,
    secure_boot: SecureBoot = False,
    memory: GuestMemory = None,
    cpus: GuestCpus = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    compact: Compact = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Copy, build and load a module. It stays loaded."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    check_compact(compact, json)
    opened = open_lab_for([directory], lab, settings_of(image, kernel, secure_boot, memory, cpus), connect)
    _steps(directory, guest, opened, json, compact, ("build", "load"), param, root, make)


def unload(
    directory: Directory,
    guest: GuestOptions = None,
    lab: LabFile = None,
    connect: Connect = None,
    json: Json = False,
    compact: Compact = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Unload what `kmlab load` or `kmlab run --keep` left loaded."""
    set_global_options(json=json, debug=debug, verbose=verbose)
    check_compact(compact, json)
    _steps(directory, guest, open_lab(lab, connect), json, compact, ("build", "unload"))


def crashes(
    file: Annotated[str, typer.Argument(help="Saved kernel log; - for stdin.", metavar="FILE")],
    module: Annotated[
        Path | None,
        typer.Option(
            "--module", help="Find source lines with this .ko, or with the builds in this folder.", metavar="PATH"
        ),
    ] = None,
    lab: LabFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the crashes in a saved kernel log. This needs no guest."""
    set_global_options(json=json, debug=debug)
    from kmlab.cli.output import render
    from kmlab.diagnosis import saved_log

    judged = saved_log.judge_file(file, module, _built_by_lab(module, lab) if module else ())
    render.crashes(judged.crashes, judged.notes, judged.source, judged.unread, as_json=json)
    # Nothing judged in a log that was not read is no answer.
    raise typer.Exit(1 if judged.crashes else 2 if judged.unread else 0)


def _built_by_lab(module: Path, lab: Path | None) -> list[Path]:
    """Return the folders in which the lab's sandboxes built this module; none if there is no lab."""
    from kmlab.config.default_lab import find_default_lab
    from kmlab.config.lab import find_lab, load_lab
    from kmlab.provision.lifecycle import lab_files

    file = lab or find_lab(Path.cwd())
    opened = load_lab(file) if file else find_default_lab(Path.cwd())
    if opened is None or not module.is_dir():
        return []
    files, name = lab_files(opened), opened.module_for(module).name
    return [files.guest(guest).builds / name for guest in files.guests()]


def _judge_ktap(file: str, writers: Reports, *, github: bool, json: bool, compact: bool) -> NoReturn:
    from kmlab.cli.output import render
    from kmlab.run.result import document
    from kmlab.run.saved_result import saved_result

    result, notes = saved_result(file, Path.cwd())
    writers.add(result)
    problems = write_reports(writers, [result], github=github, json=json)
    if json:
        render.document(document([result], 0) if compact else document([result]), line=compact)
    else:
        render.tests(result, notes)
    for problem in problems:
        render.error(problem, as_json=False)
    raise typer.Exit(3 if problems else exit_code([result]))


def _secure_boot_matrix(host: Host, lab: Lab, directory: Path, specs: list[GuestSpec], json: bool) -> NoReturn:
    from kmlab.cli.output import render
    from kmlab.secure_boot import matrix

    with render.reporting() as events:
        module = lab.module_for(directory)
        cells = matrix.run_matrix(host, lab, specs, module, ask_passphrase, events, render.one_line)
    render.document(matrix.document(cells)) if json else render.print_lines(matrix.lines(cells))
    if any(cell.happened == "error" for cell in cells):
        raise typer.Exit(3)
    raise typer.Exit(0 if all(cell.ok for cell in cells) else 1)


def _steps(
    directory: Path,
    guest: list[str] | None,
    opened: Lab,
    json: bool,
    compact: bool,
    steps: tuple[str, ...],
    param: list[str] | None = None,
    root: Path | None = None,
    make: list[str] | None = None,
    database: bool = False,
) -> None:
    import dataclasses

    from kmlab.api import LabSession
    from kmlab.cli.output import render
    from kmlab.run import parallel

    host = real_host()
    options = dataclasses.replace(with_sources(options_of(param, None, None), root, make), keep=True, steps=steps)
    planned = parallel.jobs(opened, [opened.module_for(directory)], guest or [])
    with render.reporting() as events:
        results = LabSession(opened, host, events).run_all(planned, options)
    if database and all(result.steps and result.steps[-1].outcome == "ok" for result in results):
        from kmlab.run.compile_database import write_database

        written = write_database(opened, *planned[0], options)
        render.note(f"wrote {written}")
    _end(results, json, compact=compact)


def write_reports(writers: Reports, results: list[RunResult], *, github: bool, json: bool) -> list[KmlabError]:
    """Write the reports and GitHub's annotations. Return what could not be written."""
    from kmlab.cli.output import render
    from kmlab.common.errors import LabError
    from kmlab.report.formats.github import add_job_summary, github_annotations

    problems = writers.finish(results)
    if github and not json:
        render.print_lines(github_annotations(results))
    if github:
        try:
            add_job_summary(results, os.environ)
        except LabError as error:
            problems.append(error)
    return problems


def _end(
    results: list[RunResult],
    json: bool,
    *,
    compact: bool = False,
    table: bool = False,
    problems: Sequence[KmlabError] = (),
    keys: RunKeys | None = None,
) -> NoReturn:
    from kmlab.cli.output import render
    from kmlab.report import grid
    from kmlab.run.result import document

    page = grid.grid_of(results) if table else None
    if json:
        answer = document(results, 0) if compact else document(results)
        if page:
            answer["grid"] = grid.document(page)
        answer.update(keys or {})  # type: ignore[typeddict-item]
        render.document(answer, line=compact)
    elif page:
        render.print_lines(grid.lines(page))
    else:
        for result in results:
            render.verdict(result, verbose=cli_state.verbose)
    for problem in problems:
        render.error(problem, as_json=False)
    raise typer.Exit(3 if problems else exit_code(results))


def exit_code(results: list[RunResult]) -> int:
    """Return 3 if the lab itself failed, 1 if a module did not do what was expected, else 0."""
    if any(r.outcome == "error" and not r.ok for r in results):
        return 3
    return 0 if all(r.ok for r in results) else 1
