"""Collect these tests only for `make test-debug`: they build kernels, which takes a quarter of an hour for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashers import QUIET
from tests.guest.conftest import Lab, environment

__all__ = ["environment"]
FIRST_START = 7200.0
"""Seconds for a first start, which builds the kernel."""

collect_ignore_glob = [] if os.environ.get("KMLAB_TEST_DEBUG") else ["test_*.py"]


@pytest.fixture(scope="session")
def quiet(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The modules that a stock kernel lets pass, with a guest for each flavour."""
    lab = Lab(Path(QUIET.file), environment)
    yield lab
    lab("destroy", code=None)


def start(lab: Lab, guest: str) -> None:
    """Build the guest's kernel if the cache has none, and start the guest."""
    lab("up", guest, timeout=FIRST_START)
