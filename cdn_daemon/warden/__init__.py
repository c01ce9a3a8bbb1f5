"""The warden: the plugin inside supervisord, and the only one who kills.

In supervisord.conf::

    [rpcinterface:cdn]
    supervisor.rpcinterface_factory = cdn_daemon.warden:make_rpcinterface

It makes restarts immediate and bounded, RUNNING mean ready, and every end
explained. It lives on supervisord's own loop; what may be said of each program
is in settings.py.
"""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["make_rpcinterface"]


def make_rpcinterface(supervisord: Any, **options: str) -> Any:
    """supervisor's extension point; called once for each of its HTTP servers.

    Whatever is wrong with the configuration is raised here: supervisord logs it and does not start.
    """
    from bus.endpoints import RunDir, prepare
    from cdn_daemon.warden import reach, rpc, settings, warden

    existing = getattr(supervisord, "cdn_warden", None)
    if existing is not None:
        return rpc.WardenNamespace(existing)
    try:
        reach.check_version()
        settings.check_defaults(options)
        # `command=python -m services.atlas` means this environment's python, activated or not.
        bin_dir = os.path.dirname(sys.executable)
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        os.environ["PATH"] = os.pathsep.join([bin_dir, *(part for part in path if part != bin_dir)])
        run_dir = prepare(RunDir(warden.private_run_dir(supervisord)))
        supervisord.cdn_warden = warden.Warden(supervisord, run_dir, options)
    except Exception as error:
        supervisord.options.logger.critical(f"warden: {error}")
        raise
    return rpc.WardenNamespace(supervisord.cdn_warden)
