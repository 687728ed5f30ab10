"""Read the headers that lab.yaml names for fuzzing, on the host."""

from __future__ import annotations

import posixpath

from kmlab.common.errors import ConfigError
from kmlab.common.events import printable
from kmlab.config.lab import Lab, Module
from kmlab.run.build.source_folder import read_source
from kmlab.run.build.source_tree import SourceTree

_LARGEST_HEADER = 1 << 20


def read_headers(lab: Lab, module: Module, tree: SourceTree) -> dict[str, str]:
    """Return the text of each header, by its path from the folder that is sent. Raise ConfigError if one is missing."""
    fuzz, texts = module.fuzz, {}
    for index, header in enumerate(fuzz.ioctls if fuzz else ()):
        at = ("modules", module.name, "fuzz", "ioctls", str(index))
        path = posixpath.normpath(str(tree.below / header))
        if path.startswith("../"):
            hint = f"name a folder above both: modules: {{{module.name}: {{root: FOLDER}}}}"
            raise lab.error(at, f"{header} lies outside of what is sent, {printable(str(tree.root))}", hint)
        try:
            texts[path] = read_source(tree.root, path, _LARGEST_HEADER).decode("utf-8", "replace")
        except ConfigError as error:
            raise lab.error(at, f"cannot read the header: {error.message}", error.hint) from None
    return texts
