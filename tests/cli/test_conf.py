"""supervisord.conf read and derived."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.conf import ConfError, derive, origin_of, read

HERE = Path("/srv/my app/supervisord.conf")
RUN = Path("/run/50% full")
TEXT = """\
[supervisord]
logfile=%(here)s/run/supervisord.log
user=svc
[unix_http_server]
file=%(here)s/run/supervisor.sock ; private
[program:web]
command=%(here)s/bin/web --state %(here)s/run --mode %(here)s/running
stdout_logfile=%(here)s/run/%(program_name)s.log
[include]
files = conf.d/*.conf %(here)s/more/*.ini /etc/cdn/*.conf
"""


def test_the_run_directory_is_replaced_and_nothing_else() -> None:
    """%(here)s/run becomes the run directory, other %(here)s the directory of the original."""
    derived = derive(TEXT, HERE, RUN)
    assert "logfile=/run/50%% full/supervisord.log" in derived
    assert "command=/srv/my app/bin/web --state /run/50%% full --mode /srv/my app/running" in derived
    assert "stdout_logfile=/run/50%%%% full/%(program_name)s.log" in derived  # supervisor expands this one twice
    assert "%(here)s" not in derived
    assert read(derived, HERE).socket == "/run/50% full/supervisor.sock"


def test_relative_includes_mean_what_they_meant() -> None:
    """They are relative to the file that says them, and the derived one is elsewhere."""
    assert "files =/srv/my app/conf.d/*.conf /srv/my app/more/*.ini /etc/cdn/*.conf" in derive(TEXT, HERE, RUN)


def test_a_derived_conf_names_its_origin() -> None:
    """So that a second fleet in its run directory is noticed."""
    assert origin_of(derive(TEXT, HERE, RUN)) == HERE
    assert origin_of(TEXT) is None


def test_what_is_read() -> None:
    """Socket, user, and whether it would go to the background."""
    conf = read(TEXT, HERE)
    assert conf.socket == "/srv/my app/run/supervisor.sock"
    assert conf.user == "svc"
    assert not conf.stays_in_foreground
    assert read("[supervisord]\nnodaemon=yes\n", HERE).stays_in_foreground


@pytest.mark.parametrize("text", ["nonsense", "[supervisord\n", "[program:x]\ncommand=y\n", ""])
def test_what_is_no_conf_is_refused_by_name(text: str) -> None:
    """The error names the file."""
    with pytest.raises(ConfError, match=str(HERE)):
        read(text, HERE)


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\nb", "a ;b", "a #b"])
def test_a_directory_that_an_ini_file_cannot_say_is_refused(name: str) -> None:
    """Rather than written, and read as something else."""
    with pytest.raises(ConfError, match="has a meaning there"):
        derive(TEXT, HERE, Path("/run") / name)
