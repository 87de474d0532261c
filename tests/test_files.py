"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import os
import pathlib
import platform
import stat
import subprocess
import sys

import pytest

from basis_probe.files import replace_text, replacing, require_apart, require_writable


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: pathlib.Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_of_several_writers_the_one_that_ends_last_is_read_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write(b"first, ")
        with replacing(path) as second:
            second.write(b"second")
        assert path.read_text() == "second"
        first.write(b"to its end")
    assert path.read_text() == "first, to its end"
    assert _names(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "far").mkdir()
    link, middle = tmp_path / "a.txt", tmp_path / "b.txt"
    link.symlink_to(middle)
    middle.symlink_to(tmp_path / "far" / "real.txt")
    for text in ("one", "two"):
        replace_text(link, text)
        assert link.is_symlink() and middle.is_symlink()
        assert (tmp_path / "far" / "real.txt").read_text() == text
    assert _names(tmp_path / "far") == ["real.txt"]


def test_rights_are_those_of_the_umask_and_those_of_the_old_file(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "new", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o606)
    replace_text(tmp_path / "new", "again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o606


def test_what_a_dead_process_left_is_cleared_and_nothing_else(tmp_path: pathlib.Path) -> None:
    names = ["a.txt", "ä" * 120, "[x]*?.json", ".hidden", "-rf"]
    code = (
        "import contextlib, os, signal, sys; from basis_probe.files import replacing\n"
        "with contextlib.ExitStack() as stack:\n"
        "    for name in sys.argv[1:]: stack.enter_context(replacing(name))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", code, *(f"./{name}" for name in names)]
    subprocess.run(words, cwd=tmp_path, check=False, timeout=60)
    assert len(_names(tmp_path)) == len(names)
    others = [".b.txt.x-1.tmp", ".ä.tmp", f".a.txt.{platform.node()[:40]}-1.tmp", ".a.txt.x-2.tmp"]
    for other in others:
        (tmp_path / other).touch()
    for name in names:
        replace_text(tmp_path / name, "done")
    assert _names(tmp_path) == sorted([*names, *others])
    # Of another machine it is not known what runs there, but not for a day.
    os.utime(tmp_path / others[-1], (0, 0))
    replace_text(tmp_path / "a.txt", "again")
    assert _names(tmp_path) == sorted([*names, *others[:-1]])


def test_a_name_that_cannot_be_written_is_refused_in_our_words(tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for name, words in (
        ("folder", "is a folder"),
        ("nowhere/x", "there is no folder"),
        ("file/x", "there is no folder"),
        ("pipe", "is a device or a pipe"),
        ("a\0b", "is no name of a file"),
        ("x" * 300, "cannot be written"),
    ):
        with pytest.raises((OSError, ValueError), match=words):
            require_writable(tmp_path / name)
    for name in ("", "/"):
        with pytest.raises(OSError, match="is a folder"):
            require_writable(name)
    with pytest.raises(OSError, match="leads to itself"):
        replace_text(tmp_path / "loop", "")


def test_one_file_under_two_names_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    require_apart([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="are the same file"):
        require_apart([tmp_path / "real", tmp_path / "link"])
