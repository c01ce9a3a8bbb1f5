"""What is read of processes agrees with what the system says by other ways."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from threading import Event, Thread

import pytest

from bus.messages import Limits
from cdn_daemon import keeper
from cdn_daemon.guard import TURNS, Guard
from cdn_daemon.health import HealthMonitor
from cdn_daemon.limits import MiB
from cdn_daemon.vitals import TickTimes, VitalsSampler, _descendants
from tests.support import kill_tree, until


def test_descendants() -> None:
    """Children and grandchildren, and nobody else: found by asking each for its own, or by looking at everybody."""
    child = subprocess.Popen(["sh", "-c", "sh -c 'sleep 100 & wait' & sleep 100 & wait"])
    try:
        found = until(lambda: len(pids := _descendants(child.pid)) == 3 and pids)
        assert found
        assert sorted(found) == sorted(keeper.descendants(child.pid))
        assert child.pid in _descendants(os.getpid())
    finally:
        kill_tree(child.pid)
        child.wait()
    assert _descendants(child.pid) == []


def test_the_tree_counts() -> None:
    """A child is one more, and its threads are its parent's."""
    sampler = VitalsSampler(time.monotonic())
    sampler.read_children()
    sampler.read_threads()
    before = (sampler.children, sampler.threads)
    child = subprocess.Popen(["sleep", "100"])
    try:
        sampler.read_children()
        sampler.read_threads()
        after = (sampler.children, sampler.threads)
    finally:
        kill_tree(child.pid)
        child.wait()
    assert None not in before
    assert after == tuple((number or 0) + 1 for number in before)


def test_threads_and_descriptors() -> None:
    """A thread more is one more; a file more is one more."""
    sampler = VitalsSampler(time.monotonic())
    stop = Event()
    sampler.read_threads()
    before = sampler.threads
    thread = Thread(target=stop.wait)
    thread.start()
    sampler.read_threads()
    stop.set()
    thread.join()
    assert before is not None
    assert sampler.threads == before + 1
    if os.stat("/proc/self/fd").st_size == 0:
        pytest.skip("before Linux 6.2 descriptors are counted rarely")
    sampler.read_fds()
    assert sampler.fds is not None
    with open("/dev/null"):
        fds = sampler.fds
        sampler.read_fds()
        assert sampler.fds == fds + 1


def test_the_peak_is_never_below_what_there_is() -> None:
    """Whoever finds the peak below a limit need not read memory; it stays when memory is given back."""
    sampler = VitalsSampler(time.monotonic())
    assert sampler.peak_bytes() >= (sampler.read_memory() or 0)
    before = sampler.peak_bytes()
    taken = bytearray(b"x") * (int(before) + (64 << 20))  # beyond whatever earlier tests took of this process
    now = sampler.read_memory() or 0
    assert sampler.peak_bytes() >= now > before
    del taken
    assert sampler.peak_bytes() >= now


def test_the_vitals_tell_how_ticks_do() -> None:
    """Within the turns of a second, how late they came and how long they took is in what is reported."""
    guard = Guard(Limits(), HealthMonitor([]), time.monotonic())
    assert (guard.vitals.tick_late_s, guard.vitals.tick_body_s) == (None, None)
    for _ in range(98):
        guard.ticks.add((0.001, 0.002))
    for _ in range(2):
        guard.ticks.add((0.03, 0.04))
    for turn in range(TURNS):
        guard.tick(time.monotonic(), turn)
    assert (guard.vitals.tick_late_s, guard.vitals.tick_body_s) == (0.03, 0.04)


def test_percentiles_of_ticks() -> None:
    """By nearest rank, of lateness and length each by itself; none before the first tick."""
    times = TickTimes()
    assert times.p99() == (None, None)
    for n in range(1, 101):
        times.add((n / 1000, (101 - n) / 100))
    assert times.p99() == (0.099, 0.99)
    assert times.percentile(0.5) == (0.05, 0.5)


def test_a_child_that_grows_is_seen_between_two_looks_at_all() -> None:
    """Its memory counts at the next reading, though the descendants were read before it grew; what is freed, too."""
    sampler = VitalsSampler(time.monotonic())
    source = (
        "import sys\nprint(flush=True)\nsys.stdin.readline()\nheld = bytearray(b'x') * (100 << 20)\nprint(flush=True)\n"
        "sys.stdin.readline()\ndel held\nprint(flush=True)\nsys.stdin.readline()"
    )
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        sampler.read_children()
        before = sampler.read_memory() or 0
        assert sampler.peak_bytes() == math.inf
        child.stdin.write(b"\n")
        child.stdout.readline()
        assert abs((sampler.read_memory() or 0) - before - 100 * MiB) < 10 * MiB
        child.stdin.write(b"\n")
        child.stdout.readline()
        assert abs((sampler.read_memory() or 0) - before) < 10 * MiB
