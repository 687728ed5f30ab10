"""The order in which a kernel's watchdogs speak, so that one hang always gets one name.

Documentation/admin-guide/lockup-watchdogs.rst, sysctl/kernel.rst (hung_task_timeout_secs) and RCU/stallwarn.rst. The
kernel's own figures (20, 21 and 120 s) overlap; here each rung is well above the one before.
"""

from __future__ import annotations

from typing import NamedTuple


class Ladder(NamedTuple):
    """Seconds until each rung."""

    soft_lockup: int
    """A CPU that does not schedule; the kernel reports at twice its `watchdog_thresh`."""
    rcu_stall: int
    hung_task: int
    """A task in uninterruptible sleep."""
    silence: int
    """A step of a run that has not ended though the kernel said nothing."""

    def settings(self) -> dict[str, int]:
        """Return the variables that a recipe's idle.sh puts into the guest's kernel."""
        return {
            "WATCHDOG_THRESH": self.soft_lockup // 2,
            "RCU_STALL": self.rcu_stall,
            "HUNG_TASK": self.hung_task,
            "HUNG_TASK_INTERVAL": 5,
        }


def ladder(accel: str, *, nested: bool = False) -> Ladder:
    """Give more time on a busy host: a CPU that waits for its turn must not look stuck.

    That happens to an emulated CPU, and to one of `nested` virtualisation, whose host is a virtual machine itself.
    """
    return Ladder(10, 18, 25, 45) if accel == "kvm" and not nested else Ladder(16, 28, 40, 75)
