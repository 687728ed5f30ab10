"""Ubuntu: like Debian, with newer kernels for older releases (HWE)."""

from __future__ import annotations

from collections.abc import Collection

from kmlab.distribution.debian import Debian
from kmlab.host.packages.package_archive import PackageArchive
from kmlab.kernel.build.kernel_releases import Release, Unmatched, split_release


class Ubuntu(Debian):
    """Ubuntu."""

    def choose_kernel(self, words: str, archive: PackageArchive, extra_suites: Collection[str]) -> Release | Unmatched:
        """As in Debian. `hwe` keeps the image's flavour, because other flavours have higher versions.

        The packages linux-image-…-hwe-24.04-edge have kernels that are not released yet, so they do not count.
        """
        if words != "hwe":
            return super().choose_kernel(words, archive, extra_suites)
        flavour = split_release(self.installed_kernel(archive))[1] or "generic"
        chosen = super().choose_kernel(f"linux-image-{flavour}-hwe-[0-9][0-9].[0-9][0-9]", archive, extra_suites)
        if isinstance(chosen, Unmatched):
            return Unmatched(f"the archive has no newer kernel (HWE) of the flavour '{flavour}'", chosen.hint)
        return chosen
