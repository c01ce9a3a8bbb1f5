"""``python -m tests.fuzz [NAME…] --seconds N``: hostile bytes for every target, for so long in all.

Guided by coverage where atheris is installed (``pip install atheris``), each target
in a process of its own; else by plain mutation of honest bytes, the same for the same
``--seed``. What a target should not have done ends it with 1; the bytes that did it
are kept in ``fuzz-NAME.bin``, and ``--replay FILE NAME`` does it again.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.mutation import damaged

INPUT_BYTES_MOST = 8192


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of targets; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, shared out evenly")
    parser.add_argument("--inputs", type=int, help="no more than so many for each target, by mutation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "mutation"))
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    logging.disable()  # receivers say what they refuse
    engine = told.engine or ("atheris" if importlib.util.find_spec("atheris") else "mutation")
    if told.inside:
        return _guided_inside(told.names[0], told.seconds, told.seed)

    from tests.fuzz.targets import TARGETS

    names = told.names or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"cannot fuzz {unknown[0]}: targets are {', '.join(TARGETS)}")
    if told.replay is not None:
        TARGETS[names[0]].receive(told.replay.read_bytes())
        print(f"{names[0]}: nothing was raised")
        return 0
    each_s = told.seconds / len(names)
    failed = 0
    for name in names:
        if engine == "atheris":
            failed += bool(_guided(name, each_s, told.seed))
        else:
            failed += bool(_mutated(name, each_s, told.seed, told.inputs))
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _mutated(name: str, seconds: float, seed: int, most: int | None) -> int:
    from tests.fuzz.targets import TARGETS

    found = TARGETS[name]
    chance = random.Random(f"{seed} {name}")
    end_s = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end_s and count != most:
        content = damaged(found.honest, chance)[:INPUT_BYTES_MOST]
        count += 1
        try:
            found.receive(content)
        except Exception:  # noqa: BLE001 (any is a finding, and is shown)
            traceback.print_exc()
            path = Path(f"fuzz-{name}.bin")
            path.write_bytes(content)
            print(f"{name}: raised after {count} inputs; again: python -m tests.fuzz {name} --replay {path}")
            return 1
    print(f"{name}: {count} inputs", flush=True)
    return 0


def _guided(name: str, seconds: float, seed: int) -> int:
    """libFuzzer ends its process when it is done, so it has one of its own."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--inside", f"--seconds={seconds}", f"--seed={seed}"]
    with tempfile.TemporaryDirectory(prefix="cdn-fuzz-") as place:  # libFuzzer's way to end leaves all behind
        environ = os.environ | {"TMPDIR": place}
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, env=environ)
    told = [line for line in done.stderr.splitlines() if "DONE" in line]
    if done.returncode:
        print(done.stdout + done.stderr)
    print(f"{name}: {told[-1].strip() if told else f'ended with {done.returncode}'}", flush=True)
    return done.returncode


def _guided_inside(name: str, seconds: float, seed: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["bus", "cdn_daemon", "cli", "services"]):
        from tests.fuzz.targets import TARGETS
    found = TARGETS[name]
    corpus = tempfile.mkdtemp(prefix="cdn-corpus-")
    for number, content in enumerate(found.honest):
        Path(corpus, str(number)).write_bytes(content)
    limits = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={INPUT_BYTES_MOST}", f"-seed={seed}"]
    atheris.Setup([name, *limits, f"-artifact_prefix=fuzz-{name}-", corpus], found.receive)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
