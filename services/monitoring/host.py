"""The host by /proc, in Prometheus' format and with node_exporter's names."""

from __future__ import annotations

import os
from pathlib import Path

from cdn_daemon.exposition import family, labels

_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_SECTOR_BYTES = 512
"""Of /proc/diskstats, whatever the disk's own are."""
_MEMORY = ("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "SwapTotal", "SwapFree", "Dirty")
_VIRTUAL = ("loop", "ram", "zram", "dm-")


def exposition(proc: Path = Path("/proc"), filesystems: tuple[str, ...] = ("/",)) -> str:
    """What the host says of itself now. What it does not tell is left out."""
    lines: list[str] = []
    for part in (_cpu, _memory, _load, _network, _disks, _pressure):
        try:
            lines += part(proc)
        except (OSError, ValueError, LookupError):
            continue  # no such file here, or one of another form: the rest is told all the same
    lines += _filesystems(filesystems)
    return "\n".join(lines) + "\n"


def _cpu(proc: Path) -> list[str]:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    times: list[tuple[str, float | None]] = []
    singles: dict[str, float] = {}
    for line in (proc / "stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name != "cpu":
            times += [
                (labels(cpu=name[3:], mode=mode), int(value) * tick_s)
                for mode, value in zip(_MODES, values, strict=False)
            ]
        elif name in ("ctxt", "btime", "processes", "procs_running", "procs_blocked"):
            singles[name] = float(values[0])
    return [
        *family("node_cpu_seconds_total", "counter", "Seconds that each processor spent in each mode.", times),
        *family("node_context_switches_total", "counter", "Context switches.", [("", singles.get("ctxt"))]),
        *family("node_forks_total", "counter", "Forks.", [("", singles.get("processes"))]),
        *family("node_boot_time_seconds", "gauge", "When the host booted, Unix time.", [("", singles.get("btime"))]),
        *family("node_procs_running", "gauge", "Processes that could run.", [("", singles.get("procs_running"))]),
        *family("node_procs_blocked", "gauge", "Processes that wait for a disk.", [("", singles.get("procs_blocked"))]),
    ]


def _memory(proc: Path) -> list[str]:
    found = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    lines = []
    for name in _MEMORY:
        if name in found:
            value = int(found[name].split()[0]) * 1024
            lines += family(f"node_memory_{name}_bytes", "gauge", f"{name} of /proc/meminfo.", [("", value)])
    return lines


def _load(proc: Path) -> list[str]:
    values = (proc / "loadavg").read_text().split()
    lines = []
    for name, value in zip(("node_load1", "node_load5", "node_load15"), values, strict=False):
        lines += family(name, "gauge", f"Load average over {name[9:]} min.", [("", float(value))])
    return lines


def _network(proc: Path) -> list[str]:
    received: list[tuple[str, float | None]] = []
    sent: list[tuple[str, float | None]] = []
    errors: list[tuple[str, float | None]] = []
    for line in (proc / "net" / "dev").read_text().splitlines()[2:]:
        device, _, rest = line.partition(":")
        values = rest.split()
        who = labels(device=device.strip())
        received.append((who, int(values[0])))
        sent.append((who, int(values[8])))
        errors.append((who, int(values[2]) + int(values[10])))
    return [
        *family("node_network_receive_bytes_total", "counter", "Bytes received.", received),
        *family("node_network_transmit_bytes_total", "counter", "Bytes sent.", sent),
        *family("node_network_errors_total", "counter", "Errors of receiving and sending.", errors),
    ]


def _disks(proc: Path) -> list[str]:
    read: list[tuple[str, float | None]] = []
    written: list[tuple[str, float | None]] = []
    busy: list[tuple[str, float | None]] = []
    for line in (proc / "diskstats").read_text().splitlines():
        fields = line.split()
        if fields[2].startswith(_VIRTUAL):
            continue
        who = labels(device=fields[2])
        read.append((who, int(fields[5]) * _SECTOR_BYTES))
        written.append((who, int(fields[9]) * _SECTOR_BYTES))
        busy.append((who, int(fields[12]) / 1000))
    return [
        *family("node_disk_read_bytes_total", "counter", "Bytes read.", read),
        *family("node_disk_written_bytes_total", "counter", "Bytes written.", written),
        *family("node_disk_io_time_seconds_total", "counter", "Time in which a disk was busy.", busy),
    ]


def _pressure(proc: Path) -> list[str]:
    lines = []
    for what in ("cpu", "memory", "io"):
        for line in (proc / "pressure" / what).read_text().splitlines():
            kind, *fields = line.split()
            if kind == "some":
                total = dict(field.split("=") for field in fields)["total"]
                name = f"node_pressure_{what}_waiting_seconds_total"
                lines += family(
                    name, "counter", f"Time in which something waited for {what}.", [("", int(total) / 1e6)]
                )
    return lines


def _filesystems(paths: tuple[str, ...]) -> list[str]:
    size: list[tuple[str, float | None]] = []
    available: list[tuple[str, float | None]] = []
    for path in paths:
        try:
            told = os.statvfs(path)
        except OSError:
            continue  # it is not there, or not for us: nothing is told of it
        who = labels(mountpoint=path)
        size.append((who, told.f_blocks * told.f_frsize))
        available.append((who, told.f_bavail * told.f_frsize))
    return [
        *family("node_filesystem_size_bytes", "gauge", "Size of a file system.", size),
        *family("node_filesystem_avail_bytes", "gauge", "What is left in it for us.", available),
    ]
