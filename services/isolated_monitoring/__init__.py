"""Watches the fleet from outside: needs neither bus nor ATLAS, nor anything but the standard library.

What it watches is found from supervisord's socket, supervisord.conf and /proc.
It imports nothing of bus/ or cdn_daemon/, so that what breaks those does not
break it too; tests/isolated_monitoring/test_isolation.py holds that. What it
shares with them is formats: sd_notify, the lock file, the run directory's rule.
"""
