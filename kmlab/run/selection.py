"""Find the modules that a command means by the folders that it names."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.lab import Lab, Module
from kmlab.kernel.build import dkms
from kmlab.kernel.build.kbuild import inspect_folder
from kmlab.provision.plan import plan
from kmlab.run import result
from kmlab.run.build.make import check_folder
from kmlab.run.build.source_folder import makefiles_below, read_source


def modules_under(lab: Lab, folders: Sequence[Path]) -> list[Module]:
    """Return the lab's modules, or those under the given folders: entries of lab.yaml, and folders with a Makefile.

    Raise ConfigError, before any of them runs, if one cannot be built.
    """
    selected: list[Module] = [] if folders else list(lab.modules.values())
    for folder in folders:
        if str(folder) in lab.modules and not folder.exists():
            selected.append(lab.modules[str(folder)])
            continue
        top = folder.resolve()
        matching = [m for m in lab.modules.values() if lab.locate(m.source).resolve().is_relative_to(top)]
        if not matching:
            matching = [lab.module_for(folder) for folder in module_folders(top)]
        if not matching:
            missing = "no modules under this folder" if top.is_dir() else "no such folder"
            raise ConfigError(f"{printable(str(folder))}: {missing}", "give folders of modules, or one above them")
        selected += matching
    modules = _with_unique_names(lab, selected)
    if not modules:
        raise ConfigError(f"{lab.file}: no modules", "add some under modules:, or name their folders")
    for module in modules:
        _check_module(lab, module)
    return modules


def find_problems(lab: Lab) -> list[ConfigError]:
    """Return what is wrong with a lab beyond its keys and values: images, recipes, kernels, folders of modules."""
    return [*_problems_of(_guest_checks(lab)), *_problems_of(_module_checks(lab))]


def _problems_of(checks: Iterable[Callable[[], object]]) -> Iterator[ConfigError]:
    for check in checks:
        try:
            check()
        except ConfigError as error:
            yield error


def _guest_checks(lab: Lab) -> Iterator[Callable[[], object]]:
    for spec in lab.guests.values():
        yield functools.partial(plan.check_guest, lab, spec)
    yield lambda: lab.columns(lab.default, lab.matrix)


def _module_checks(lab: Lab) -> Iterator[Callable[[], object]]:
    for module in lab.modules.values():
        yield functools.partial(_check_module, lab, module)


def _check_module(lab: Lab, module: Module) -> None:
    result.check_expected(lab, module)
    try:
        check_folder(lab.locate(module.source), module.prepare)
    except ConfigError as error:
        if module.name in lab.modules:
            raise lab.error(("modules", module.name, "source"), error.message, error.hint) from None
        raise


def module_folders(top: Path) -> list[Path]:
    """Return the folders of modules: the topmost with obj-m, and those whose Makefile calls the kernel's."""
    texts: dict[Path, dict[str, str]] = {}
    for path in makefiles_below(top):
        texts.setdefault((top / path).parent, {})[os.path.basename(path)] = read_source(top, path).decode(
            errors="replace"
        )
    made = {folder for folder, files in texts.items() if dkms.FILE in files}
    made |= {folder for folder, files in texts.items() if inspect_folder(files).kind == "kbuild"}
    made |= {
        folder
        for folder, files in texts.items()
        if re.search(r"\bM=|\bSUBDIRS=", files.get("Makefile", "")) and not any(folder in m.parents for m in made)
    }
    return sorted(folder for folder in made if not any(parent in made for parent in folder.parents))


def _with_unique_names(lab: Lab, modules: Sequence[Module]) -> list[Module]:
    """Return each module once; add parents' names if two folders have the same name, as in a course's weeks."""
    named: dict[str, Module] = {}
    for each in modules:
        place, name, depth = lab.locate(each.source).resolve(), each.name, 1
        while name in named and lab.locate(named[name].source).resolve() != place and depth < len(place.parts):
            depth += 1
            name = re.sub("[^A-Za-z0-9_.+-]", "-", "-".join(place.parts[-depth:])).lstrip(".+-")[-64:]
        named.setdefault(name, each if name == each.name else dataclasses.replace(each, name=name))
    return list(named.values())


def modules_below(lab: Lab, folder: Path) -> list[Module]:
    """Return a module for each module's folder at or below a folder, with unique names; none if there are none."""
    return _with_unique_names(lab, [lab.module_for(each) for each in module_folders(folder.resolve())])
