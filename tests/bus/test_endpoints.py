"""The run directory: where it is, and what is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bus.endpoints import MAX_SOCKET_PATH_BYTES, RunDir, RunDirError, default_run_dir, host_name, prepare


def test_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CDN_RUN_DIR; run beside supervisord.conf; XDG_RUNTIME_DIR/cdn; /run/cdn for root; ./run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "supervisord.conf").touch()
    assert default_run_dir({"CDN_RUN_DIR": "/a", "XDG_RUNTIME_DIR": "/x"}).path == Path("/a")
    assert default_run_dir({"XDG_RUNTIME_DIR": "/x"}).path == tmp_path / "run"
    (tmp_path / "supervisord.conf").unlink()
    assert default_run_dir({"XDG_RUNTIME_DIR": "/x"}).path == Path("/x/cdn")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_run_dir({}).path == Path("/run/cdn")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_run_dir({}).path == tmp_path / "run"


def test_prepare_makes_it_private(tmp_path: Path) -> None:
    """0700, even if it was there and open to others."""
    path = tmp_path / "r"
    path.mkdir(mode=0o755)
    prepare(RunDir(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (path / "locks").is_dir()


def test_too_long(tmp_path: Path) -> None:
    """A path that no socket fits in is refused with how much too long it is."""
    path = tmp_path / ("x" * MAX_SOCKET_PATH_BYTES)
    with pytest.raises(RunDirError, match=r"the limit is 107; set CDN_RUN_DIR to a path at least \d+ bytes shorter"):
        prepare(RunDir(path))
    assert not path.exists()


def test_not_a_directory(tmp_path: Path) -> None:
    """A file in its place is named."""
    (tmp_path / "f").touch()
    with pytest.raises(RunDirError, match="cannot use run directory"):
        prepare(RunDir(tmp_path / "f" / "r"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_somebody_elses(tmp_path: Path) -> None:
    """Another user's directory is not made our own."""
    os.chown(tmp_path, 1234, -1)
    with pytest.raises(RunDirError, match="belongs to uid 1234"):
        prepare(RunDir(tmp_path))


def test_where_everybody_writes(tmp_path: Path) -> None:
    """Such as /tmp: it stays as it is, as others need it and might have put anything there. An empty volume is ours."""
    tmp_path.chmod(0o1777)
    (tmp_path / "state").touch()
    with pytest.raises(RunDirError, match="everybody may write to it, and it is not empty; set CDN_RUN_DIR"):
        prepare(RunDir(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    (tmp_path / "state").unlink()
    prepare(RunDir(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a link away")
def test_a_link_of_somebody_elses(tmp_path: Path) -> None:
    """It would have us close any directory of our own to others; a link of our own is followed."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o755)
    link.symlink_to(target)
    os.lchown(link, 1234, -1)
    with pytest.raises(RunDirError, match="it is a link of uid 1234"):
        prepare(RunDir(link))
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    os.lchown(link, 0, -1)
    assert prepare(RunDir(link)).path == link


def test_host_name_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host is called, topics can hold it."""
    monkeypatch.setattr("socket.gethostname", lambda: "-we/ird häst.example")
    assert host_name() == "we-ird-h-st.example"
    monkeypatch.setattr("socket.gethostname", lambda: "///")
    assert host_name() == "localhost"
