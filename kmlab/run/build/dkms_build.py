"""Build a folder with a dkms.conf as dkms would: which modules, with which command, or not at all for this kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.kernel.build import dkms, kbuild
from kmlab.run.build.build_place import Place, Ran, diagnostics_of, explain
from kmlab.run.build.products import BuildResult, ordered_modules
from kmlab.run.build.request import BuildRequest

_TREE = ".kmlab/dkms"
"""What dkms calls its tree: in the module's folder, because a build may write only there."""


def build_with_dkms(place: Place, request: BuildRequest, about: kbuild.Folder, release: str) -> BuildResult:
    """Read dkms.conf for this kernel, and build what it promises."""
    tree = f"{request.folder}/{_TREE}"
    about_kernel = (release, place.arch, tree, f"{tree}/src")
    ran = _run_script(place, request, dkms.READ_CONF, about_kernel)
    conf = dkms.parse_conf(ran.log)
    how = f"dkms.conf{place.suffix}"
    mistake = _mistake(conf, ran)
    if mistake:
        return BuildResult(False, ran.log, how, (), mistake)
    config = place.read_config()
    why = conf.excluded(release, place.arch, config)
    if why:
        return BuildResult(False, ran.log, how, (), f"{why}: dkms does not build it for {release}", skipped=True)
    build = f"{tree}/{conf.name}/{conf.version}/build"
    command = conf.make_command(release, build, os.cpu_count() or 1, config.get("CC_IS_CLANG") == "y")
    words = (build, *about_kernel, conf.name, conf.version, command, conf.get("PRE_BUILD"), *conf.patches(release))
    ran = _run_script(place, request, dkms.BUILD, words)
    below = str(request.tree.below / _TREE / conf.name / conf.version / "build")
    return _result(place, request, conf, about, release, ran, how, below, config)


def _run_script(place: Place, request: BuildRequest, script: str, words: Sequence[str]) -> Ran:
    argv = ("bash", "-c", script, "bash", *words)
    return place.run(kbuild.BuildCommand("dkms", argv, request.folder, (("PWD", str(request.folder)),)))


def _mistake(conf: dkms.DkmsConf, ran: Ran) -> str | None:
    """Return why dkms would not begin: a sentence."""
    if ran.excess:
        return ran.excess
    if conf.depends():
        names = printable(", ".join(conf.depends()), 200)
        return f"dkms.conf needs the DKMS package {names} to be built before it (BUILD_DEPENDS), and it is not there"
    return conf.mistake()


def _result(
    place: Place,
    request: BuildRequest,
    conf: dkms.DkmsConf,
    about: kbuild.Folder,
    release: str,
    ran: Ran,
    how: str,
    below: str,
    config: Mapping[str, str],
) -> BuildResult:
    """Return the modules that dkms.conf promises, or why one of them is not there."""
    folder = str(request.folder / below.removeprefix(f"{request.tree.below}/"))
    diagnostics = diagnostics_of(ran.log, request, folder)
    if ran.excess or ran.products.excess:
        return BuildResult(False, ran.log, how, diagnostics, ran.excess or ran.products.excess)
    if ran.code != 0:
        reason = explain(place, request, ran, diagnostics, about, release)
        return BuildResult(False, ran.log, how, diagnostics, reason)
    wanted = [m.path for m in conf.modules() if not conf.exclusion(m.index, release, place.arch, config)]
    images = {path: ran.products.files.get(f"{below}/{path}") for path in wanted}
    absent = [path for path, image in images.items() if image is None]
    if absent or not wanted:
        what = f"make ended well, but {printable(absent[0], 120)} is not there" if absent else "it names no module"
        what += ": see BUILT_MODULE_NAME and BUILT_MODULE_LOCATION in dkms.conf"
        return BuildResult(False, ran.log, how, diagnostics, what)
    try:
        modules, outside = ordered_modules({f"{below}/{path}": image for path, image in images.items() if image})
    except ConfigError as error:
        return BuildResult(False, ran.log, how, diagnostics, f"the built module cannot be loaded: {error.message}")
    found = {f"{below}/{path}": image for path, image in images.items() if image}
    return BuildResult(True, ran.log, how, diagnostics, None, found, modules, outside, built_in=below)
