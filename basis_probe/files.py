"""Files that are replaced as a whole: a reader sees the old one or the new one, never half."""

import hashlib
import itertools
import os
import pathlib
import platform
import re
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import BinaryIO

_STRANGER_SECONDS = 24 * 3600
"""A temporary file of another machine is nobody's after so long."""

_numbers = itertools.count()
"""Of temporary files: several threads may write one file, and each one's comes whole."""


def no_file(path: str | os.PathLike[str]) -> str:
    """What is at a path where a file was to be read and none is; begins a sentence.

    Example:
        >>> no_file("nowhere.json"), no_file(os.curdir)
        ('there is no file nowhere.json', '. is a folder, and a file is needed')
    """
    name = _named(path)[1:-1]
    if os.path.isdir(path):
        return f"{name} is a folder, and a file is needed"
    if os.path.exists(path):
        return f"{name} is a device or a pipe, and a file is needed"
    return f"there is no file {name}"


def require_writable(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file behind a path, links followed, if one can be written there.

    It costs nothing, so that a run of hours need not find out at its end.

    Raises:
        OSError: if there is no such folder, it may not be written in, or a folder or a device
            stands where the file is meant.
        ValueError: if no file can have that name.
    """
    try:
        target = pathlib.Path(os.path.realpath(path))
        found = target.lstat() if target.exists() else None
    except (OSError, RuntimeError) as error:
        raise OSError(f"{_named(path)} cannot be written: {error.args[-1]}") from error
    except ValueError as error:
        raise ValueError(f"{_named(path)} is no name of a file: {error}") from error
    folder = target.parent
    if target.is_symlink():
        raise OSError(f"{_named(path)} is a link that leads to itself: give the name of a file")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{_named(path)} cannot be written: there is no folder {folder}; make it, or give "
            "another path"
        )
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(
            f"{_named(path)} is a folder, and a file is to be written there: give the name of a "
            "file"
        )
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OSError(f"{_named(path)} is a device or a pipe, no file: give the name of a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{_named(path)} cannot be written: the folder {folder} may not be written in; give "
            "another path"
        )
    if not target.name:
        raise IsADirectoryError(f"{_named(path)} names no file: give the name of a file")
    return target


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Within the context a new file is written; at its end it takes the place of the old one.

    It is written beside the old one, which stays as it was if anything fails. A link stays a link,
    a file that is replaced keeps its rights, and a new one has those that the umask gives. What a
    process that died has left behind is taken away.

    Yields:
        The new file, open for bytes.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "numbers.txt")
        ...     with replacing(target) as file:
        ...         _ = file.write(b"1 2 3")
        ...     target.read_text()
        '1 2 3'
    """
    target = require_writable(path)
    _clear(target)
    waiting = target.with_name(
        f"{_stem(target)}{platform.node()[:40]}-{os.getpid()}.{next(_numbers)}.tmp"
    )
    try:
        with waiting.open("wb") as file:
            if target.exists():
                os.chmod(waiting, stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(waiting, target)
    finally:
        with suppress(OSError):
            waiting.unlink(missing_ok=True)


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text as UTF-8 in place of a file, as `replacing` does."""
    data = text.encode("utf-8", "backslashreplace")
    with replacing(path) as file:
        file.write(data)


def require_apart(paths: list[pathlib.Path]) -> None:
    """Raises ValueError if two of the paths are of one file."""
    seen: dict[str, pathlib.Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise ValueError(
                f"{_named(seen[real])} and {_named(path)} are the same file, and one would replace "
                "the other: give each its own"
            )
        seen[real] = path


def _named(path: object) -> str:
    text = str(path)
    return repr(text if len(text) < 300 else f"{text[:100]} … {text[-100:]}")


def _stem(target: pathlib.Path) -> str:
    """How the temporary files of a file begin."""
    name = target.name
    if len(os.fsencode(name)) > 150:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def _clear(target: pathlib.Path) -> None:
    """Takes away the temporary files of a file whose processes are dead."""
    left = re.compile(rf"{re.escape(_stem(target))}(.*)-(\d+)(?:\.\d+)?\.tmp", re.DOTALL)
    with suppress(OSError):
        for other in list(os.scandir(target.parent)):
            match = left.fullmatch(other.name)
            if match is None:
                continue
            mine = match[1] == platform.node()[:40]
            with suppress(OSError):
                old = time.time() - other.stat(follow_symlinks=False).st_mtime > _STRANGER_SECONDS
                if (mine and not _lives(int(match[2]))) or (old and not mine):
                    os.unlink(other.path)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
