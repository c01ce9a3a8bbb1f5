"""What processes use, as the kernel accounts it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, in nanoseconds' steps, with the threads that have ended."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # its CPUCLOCK_SCHED, as clock_getcpuclockid(3) makes it
    except OSError as error:
        raise ProcessLookupError(f"no process {pid}") from error


def shares_mib(pid: int) -> dict[str, float]:
    """What counts once more with this process: its private pages; and PSS, with its share of those that others have."""
    kib: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, _ = line.split()
        kib[name] = int(value)
    return {"pss_mib": kib["Pss:"] / 1024, "private_mib": (kib["Private_Clean:"] + kib["Private_Dirty:"]) / 1024}


def rss_mib(pid: int) -> float:
    """Resident set size."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)
