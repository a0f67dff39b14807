"""One process at a time: what holds a run's folder, and each of its records files."""

import errno
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

# what a file system answers that has no locks
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_SOFT = ".held"
_TAKE_OVER_SECONDS = 1.0


def hold(path: Path, what: Path) -> BaseFileLock:
    """Hold a lock file for this process, until ``release`` of what is returned, or the process's end.

    The lock is the operating system's, so a killed process leaves none behind. On a file system without such locks
    ``<path>.held`` stands for it, with the process and its host inside; one that a dead process of this host left is
    taken over, and so is one that stays empty.

    The file is made where it is missing, and stays.

    Raises:
        ValueError: If another process holds it.
        OSError: If the file cannot be made, or is a symbolic link.
    """
    try:
        return _acquire(FileLock(path, fallback_to_soft=False, thread_local=False), 0)
    except Timeout as error:
        raise ValueError(f"{what} is in use by another run: wait for it, or give another --name") from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    soft = path.with_name(path.name + _SOFT)
    empty = _empty_file(soft)
    try:
        return _acquire(SoftFileLock(soft, thread_local=False), _TAKE_OVER_SECONDS)
    except Timeout as error:
        if empty and _empty_file(soft) == empty:  # for all that time, so its process ended before it wrote its name
            soft.unlink(missing_ok=True)
            return hold(path, what)
        process, host = _holder(soft)
        raise ValueError(
            f"{what} is in use by process {process} on {host}: wait for it, or give another --name; if that process "
            f"has ended, delete {soft}"
        ) from error


def is_held(path: Path) -> bool | None:
    """Whether a process holds a lock file; None where that cannot be told, as of a folder that we may not write to."""
    if path.with_name(path.name + _SOFT).exists():
        return True
    if not path.is_file():
        return False
    try:
        _acquire(FileLock(path, fallback_to_soft=False, thread_local=False), 0).release()
    except Timeout:
        return True
    except OSError as error:
        return False if error.errno in _WITHOUT_LOCKS else None  # without locks only the other file says it
    return False


def _acquire(lock: BaseFileLock, seconds: float) -> BaseFileLock:
    lock.acquire(timeout=seconds)
    return lock


def _empty_file(path: Path) -> tuple[int, int] | None:
    """What tells an empty file from a later one of its name; None where it is absent or holds something."""
    try:
        found = path.stat()
    except OSError:
        return None
    return None if found.st_size else (found.st_ino, found.st_mtime_ns)


def _holder(path: Path) -> tuple[str, str]:
    """Process id and host that a soft lock names."""
    try:
        process, host = path.read_text(encoding="utf-8").splitlines()[:2]
    except (OSError, ValueError):  # released meanwhile, or not yet written
        return "?", "an unknown host"
    return process, host
