"""Judge many damaged logs: no exception, no line longer than its cap, no escape code in the output.

    .venv/bin/python tools/fuzz.py --logs 1000000 [--first SEED]    damaged like in the tests, with a seed each
    .venv/bin/python tools/fuzz.py --seconds 300                    guided by coverage: atheris (pip install atheris)

A failure is printed with its seed, or written as `crash-…` in this folder; the exit status is then not 0.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.kernel.crash.test_oops_fuzz import CORPUS, check, damaged

_TELL_EVERY = 20_000


def judge_damaged(logs: int, first: int) -> None:
    """Judge this many damaged logs, each reproducible by its seed."""
    began = time.monotonic()
    for seed in range(first, first + logs):
        chance = random.Random(seed)
        data = damaged(chance)
        try:
            check(data, chance.randint(1, 3000))
        except BaseException:
            print(f"seed {seed}: {len(data)} bytes", file=sys.stderr)
            raise
        if (seed + 1) % _TELL_EVERY == 0:
            print(f"{seed + 1 - first} logs in {time.monotonic() - began:.0f} s", flush=True)


def judge_guided(seconds: int) -> None:
    """Judge logs derived from the corpus until the time is over."""
    import atheris  # type: ignore[import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["kmlab"]):
        import importlib

        for name in [n for n in sys.modules if n.startswith("kmlab.kernel")]:
            importlib.reload(sys.modules[name])
        import tests.kernel.crash.test_oops_fuzz as fuzz

        importlib.reload(fuzz)
    folder = tempfile.mkdtemp(prefix="kmlab-fuzz")
    for number, log in enumerate(CORPUS):
        (Path(folder) / f"{number:03}").write_bytes(log)

    def judge(data: bytes) -> None:
        fuzz.check(data, 1 + len(data) % 1000)

    options = [
        f"-max_total_time={seconds}",
        "-max_len=20000",
        "-timeout=30",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, folder], judge)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=0)
    arguments = parser.parse_args()
    judge_damaged(arguments.logs, arguments.first)
    if arguments.seconds:
        judge_guided(arguments.seconds)
