"""A service that is a plain function, and does whatever a test needs to see survived."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from threading import Event

import uvloop

from cdn_daemon import ConfigurationError, Service, run


async def turn(stop: Event) -> None:
    """An event loop of the function's own, which takes signals for itself."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
    while not stop.is_set():
        await asyncio.sleep(0.05)
    print("function returns", flush=True)


def main(stop: Event) -> None:
    """Counts until it is told to stop, or does as PLAIN says."""
    print(f"function on {threading.current_thread().name}", flush=True)
    match os.environ.get("PLAIN"):
        case "return":
            return
        case "raise":
            raise RuntimeError("the function is broken")
        case "misconfigured":
            raise ConfigurationError("cannot find the colour: set PLAIN_COLOUR")
        case "exit":
            sys.exit(3)
        case "exit text":
            sys.exit("that is the end")
        case "deaf":
            ctypes.CDLL(None).pause()  # C code that a signal interrupts, but that does not come back
            while True:
                time.sleep(3600)
        case "loop":
            uvloop.run(turn(stop))
        case _:
            while not stop.wait(0.05):
                continue
            print("function returns", flush=True)


service = Service("tiny", main=main, drain_s=5.0)


@service.ready
async def warmed_up() -> str | None:
    """Ready once a file called ``warm`` is in the run directory, if PLAIN is ``cold``."""
    if os.environ.get("PLAIN") == "cold" and not os.path.exists(os.path.join(os.environ["CDN_RUN_DIR"], "warm")):
        return "the cache is cold"
    return None


@service.drain
async def put_away(within_s: float) -> None:
    """Says how long it has; raises if PLAIN is ``untidy``."""
    print(f"putting away within {within_s:g} s", flush=True)
    if os.environ.get("PLAIN") == "untidy":
        raise RuntimeError("it does not fit")


if __name__ == "__main__":
    run(service)
