"""`kmlab torture`: try what an ordinary run of a module does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from kmlab.cli.options.module_options import (
    Coverage,
    DebugKernel,
    Exercise,
    MakeVariables,
    Params,
    Root,
    Timeout,
    options_of,
    report_coverage,
    seconds_of,
    with_coverage,
    with_sources,
)
from kmlab.cli.options.shared_options import (
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
    open_lab_for,
    real_host,
    set_global_options,
    settings_of,
)

if TYPE_CHECKING:
    from kmlab.run.result import RunResult
    from kmlab.run.torture_runs import CaseResult


def torture(
    directory: Directory,
    guest: GuestOptions = None,
    debug_kernel: DebugKernel = False,
    case: Annotated[
        str | None, typer.Option("--case", help="Run only this case, for example fail-12.", metavar="CASE")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="Run only this kind of cases; repeat the option for several.", metavar="GROUP"),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", help="Load and unload this many times in a row.", metavar="N", min=1, max=10000)
    ] = 20,
    limit: Annotated[
        str | None, typer.Option("--for", help="Begin no case after this time, for example 10m.", metavar="TIME")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Draw random values from this number.", metavar="N")] = 1,
    param: Params = None,
    exercise: Exercise = None,
    timeout: Timeout = None,
    root: Root = None,
    make: MakeVariables = None,
    coverage: Coverage = None,
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
    """Try what an ordinary run of a module does not.

    Each parameter at its edges, each call of init that can fail fails once, an unload while files are open, and more. A
    kernel that kmlab built (`kernel: debug`) allows all of it and notices most.
    """
    set_global_options(json=json, debug=debug, verbose=verbose)
    from kmlab.cli.output import render
    from kmlab.config.run_options import TorturePlan
    from kmlab.run import parallel, torture_runs

    until = time.monotonic() + seconds_of(limit, "--for") if limit else None
    plan = TorturePlan(groups=tuple(group or ()), only=case, repeat=repeat, seed=seed, until=until)
    torture_runs.check_plan(plan)
    settings = settings_of(image, kernel, secure_boot, memory, cpus)
    opened, host = open_lab_for([directory], lab, settings, connect), real_host()
    options = with_sources(options_of(param, exercise, timeout), root, make)
    options = with_coverage(options, coverage)
    module = opened.module_for(directory)
    specs = [job.spec for job in parallel.jobs(opened, [module], guest or [], debug_kernel=debug_kernel)]

    runs: list[RunResult] = []

    def show(result: CaseResult) -> None:
        if not result.ok:
            render.note(f"{result.guest}: {result.outcome} in case {result.name}: {result.what}")

    with render.reporting() as events:
        results = torture_runs.torture(host, opened, specs, module, options, plan, events, show, runs.append)
    if coverage:
        report_coverage(coverage, runs)
    if json:
        render.document(torture_runs.document(module, results, plan))
    else:
        render.print_lines(torture_runs.lines(results))
    raise typer.Exit(torture_runs.exit_code(results))
