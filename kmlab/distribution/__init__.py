"""Know families of distributions: their packages, kernels and archives. A family is one file, and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from kmlab.distribution.debian import Debian
from kmlab.distribution.distribution import Distribution, PackageRelease
from kmlab.distribution.ubuntu import Ubuntu

__all__ = ["FAMILIES", "Distribution", "PackageRelease", "distribution_of"]

FAMILIES: dict[str, Distribution] = {
    "debian": Debian(),
    "ubuntu": Ubuntu(),
}


def distribution_of(families: Sequence[str]) -> Distribution:
    """Return the first of these families that is a distribution: a recipe's own, then those that it is like.

    A lab's own recipe that is like none uses Debian's packages.
    """
    return next((FAMILIES[name] for name in families if name in FAMILIES), FAMILIES["debian"])
