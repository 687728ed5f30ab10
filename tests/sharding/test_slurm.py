"""A real Slurm on this machine runs an array of three shards; a node is lost in the middle, and its task runs again."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kmlab.host.hypervisor import hypervisor
from tests.places import REPOSITORY

NODES = 3
MODULES = tuple("abcdef")
CONFIGURATION = """\
ClusterName=kmlab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
MpiDefault=none
SwitchType=switch/none
SlurmdTimeout=6
JobRequeue=1
MailProg=/bin/true
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1 State=UNKNOWN
PartitionName=p Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"""
PROGRAM = """\
#!/bin/sh
# Each attempt of a task is a machine of its own. The second shard does not end on its first machine.
machine={folder}/m$SLURM_ARRAY_TASK_ID${{SLURM_RESTART_COUNT:-0}}
export XDG_STATE_HOME=$machine/s XDG_CACHE_HOME=$machine/c PYTHONPATH={repository}
if [ "$SLURM_ARRAY_TASK_ID${{SLURM_RESTART_COUNT:-0}}" = 20 ]; then export WAITS="d e f"; fi
echo $$ $SLURMD_NODENAME > {folder}/task-$SLURM_ARRAY_TASK_ID
exec {python} -m tests.fake_kmlab "$@"
"""


class Cluster:
    """A controller and three nodes, each a daemon of this user on the loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        first = free_ports(NODES + 1)
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            nodes=NODES,
            ports=(first, first + 1, first + NODES),
        )
        (folder / "slurm.conf").write_text(text)
        (folder / "state").mkdir()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        keys = self.folder / "keys"
        keys.mkdir(mode=0o700)
        (keys / "munge.key").write_bytes(secrets.token_bytes(128))
        (keys / "munge.key").chmod(0o600)
        munge = {
            "key-file": keys / "munge.key",
            "pid-file": keys / "pid",
            "log-file": keys / "log",
            "seed-file": keys / "seed",
        }
        words = [f"--{name}={path}" for name, path in munge.items()]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.sock", *words)
        wait_until("munged", (self.folder / "munge.sock").exists)
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for number in range(1, NODES + 1):
            self._daemon("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", f"n{number}", name=f"n{number}")
        wait_until("the nodes", lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(NODES))

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=30)
        return done.stdout if done.returncode == 0 else ""

    def lose(self, node: str, process: int) -> None:
        """End a node with all that runs on it, as a power cut does."""
        step = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for victim in (self._processes.pop(node).pid, step, process):
            os.kill(victim, signal.SIGKILL)

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()

    def _daemon(self, program: str, *words: str, name: str = "") -> None:
        path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
        assert path, f"{program} is not installed: make setup"
        with (self.folder / f"{name or program}.out").open("wb") as output:
            self._processes[name or program] = subprocess.Popen(
                [path, *words], env=self.environment, stdout=output, stderr=output, start_new_session=True
            )


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that nobody listens on."""
    for first in range(23_000 + os.getpid() % 5000, 60_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no ports are free")


def wait_until(what: str, true: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


@pytest.fixture
def cluster(xdg: Path) -> Iterator[Cluster]:
    made = Cluster(xdg)
    try:
        made.start()
        yield made
    finally:
        made.ask("scancel", "--full", "--user", getpass.getuser())
        made.stop()
        hypervisor.kill(xdg)


def test_a_lost_node_s_task_runs_again_and_the_merge_has_each_row_once(cluster: Cluster) -> None:
    folder, lab = cluster.folder, cluster.folder / "lab"
    for name in MODULES:
        (lab / name).mkdir(parents=True)
        (lab / name / "Kbuild").write_text(f"obj-m := {name}.o\n")
    entries = "".join(f"  {name}: {{source: {name}}}\n" for name in MODULES)
    guests = "guests:\n  debian: {image: debian-12, memory: 256M}\n"
    (lab / "lab.yaml").write_text(f"name: fake\nbuild: guest\n{guests}modules:\n{entries}")
    program = folder / "bin" / "kmlab"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(folder=folder, repository=REPOSITORY, python=sys.executable))
    program.chmod(0o755)
    array = [f"--array=1-{NODES}", f"--chdir={lab}", f"--output={folder}/out-%a"]
    path = f"--export=ALL,PATH={program.parent}:{os.environ['PATH']}"
    job = cluster.ask("sbatch", "--parsable", *array, path, str(REPOSITORY / "cluster" / "slurm.sh")).strip()
    assert job

    streamed = lab / "results" / "2.jsonl"
    wait_until("the first result of the second shard", lambda: streamed.exists() and streamed.read_text().count("\n"))
    process, node = (folder / "task-2").read_text().split()
    cluster.lose(node, int(process))
    assert not (lab / "results" / "2.json").exists()
    wait_until("the task to be queued again", lambda: cluster.ask("squeue", "-h", "-t", "PD", "-j", f"{job}_2"))
    merged = merge(cluster, lab)
    assert merged.returncode == 3
    first = json.loads(merged.stdout)
    assert len(first["results"]) == 5 and len(first["missing"]) == 1, "a row had ended before the node was lost"

    # Slurm waits two minutes before it starts a task of a lost node again.
    cluster.ask("scontrol", "update", f"jobid={job}_2", "starttime=now")
    wait_until("all tasks", lambda: not cluster.ask("squeue", "-h", "-j", job).strip())
    assert "shard 2/3" in (folder / "out-2").read_text()
    merged = merge(cluster, lab)
    assert merged.returncode == 0, merged.stderr
    whole = json.loads(merged.stdout)
    assert sorted(each["module"] for each in whole["results"]) == list(MODULES)
    assert whole["missing"] == []


def merge(cluster: Cluster, lab: Path) -> subprocess.CompletedProcess[str]:
    """`kmlab merge` of what the tasks have written so far."""
    return subprocess.run(
        [sys.executable, "-m", "kmlab", "merge", "results", "--json"],
        cwd=lab,
        env={**cluster.environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
