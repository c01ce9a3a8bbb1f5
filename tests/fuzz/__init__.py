"""Hostile bytes for everything that reads what others wrote: see targets.py; ``python -m tests.fuzz`` goes on."""
