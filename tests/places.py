"""Where the repository and the data of the tests are, wherever a test stands."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TEST_DATA = REPOSITORY / "tests" / "data"
