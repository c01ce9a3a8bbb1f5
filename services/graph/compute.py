"""An algorithm in a process of its own, which can be ended at any moment: it holds nobody up, and outlives nobody.

``python -m services.graph.compute`` reads one Job from its standard input and writes its Outcome to its output.
"""

from __future__ import annotations

import asyncio
import sys
from array import array

import msgspec

from services.graph.algorithms import Job, Outcome
from services.graph.views import TimeIsUp

GRACE_S = 1.0


async def compute(job: Job) -> Outcome:
    """Its outcome; raises TimeIsUp. Cancelled, it ends the process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.graph.compute",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(job.deadline_s):
            said, _ = await process.communicate(msgspec.msgpack.encode(job))
    except TimeoutError as error:
        raise TimeIsUp from error
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        return Outcome(
            error=f"cannot compute this: its process ended with {process.returncode}, perhaps for want of memory"
        )
    return msgspec.msgpack.decode(said, type=Outcome)


def main() -> None:
    """The process."""
    import resource
    import signal

    from services.graph.algorithms import run

    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    # Whoever waited may be gone without a word, by SIGKILL: then the kernel ends this, whatever it is doing.
    signal.setitimer(signal.ITIMER_REAL, job.deadline_s + GRACE_S)
    resource.setrlimit(resource.RLIMIT_AS, (job.memory_bytes, job.memory_bytes))
    sources, targets, weights = array("i"), array("i"), array("d")
    sources.frombytes(job.sources)
    targets.frombytes(job.targets)
    weights.frombytes(job.weights)
    try:
        outcome = run(job, sources, targets, weights)
    except MemoryError:
        outcome = Outcome(error="cannot compute this: out of memory")
    sys.stdout.buffer.write(msgspec.msgpack.encode(outcome))


if __name__ == "__main__":
    main()
