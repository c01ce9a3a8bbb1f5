"""Tests of the warden: its pure parts by tables and histories, the rest in real supervisords."""
