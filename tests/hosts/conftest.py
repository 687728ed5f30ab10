"""Collect these tests only for `make test-hosts`: they need root, the network and hours."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("KMLAB_TEST_HOSTS") else ["test_*.py"]
