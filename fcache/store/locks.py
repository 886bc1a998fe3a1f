"""Locks across threads, processes and machines: the short one of a view, a folder held alone."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fcache.errors import ConfigError
from fcache.store.files import make_folder, space_checked

_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a view's lock: across threads, processes and, by POSIX locks, NFS clients.

    The kernel lets go of it when a process dies, so it is never stale.
    """
    with _thread_lock(path):
        with space_checked(path):
            make_folder(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


@contextmanager
def undisturbed(path: Path) -> Iterator[None]:
    """Keeps those who hold a view's lock out while its records are compared with each other.

    Needs no right to write. On a file system without locks it keeps nobody out.
    """
    with _thread_lock(path):
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # nobody has ever written here
            yield
            return
        try:
            with suppress(OSError):
                fcntl.lockf(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)


@contextmanager
def held_alone(folder: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes out of a folder for as long as the context lasts; makes it.

    Args:
        folder: Which.
        refusal: What is told to those who find somebody in it.

    Raises:
        ConfigError: another process is in.
        NoSpaceError: the disk is full.
    """
    with space_checked(folder):
        make_folder(folder)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(refusal) from None
        yield
    finally:
        os.close(fd)


def _thread_lock(path: Path) -> threading.Lock:
    # A POSIX lock belongs to the process and falls when it closes any descriptor of the file:
    # threads exclude each other first, whatever way they spell the path.
    with _thread_locks_guard:
        return _thread_locks.setdefault(os.path.realpath(path), threading.Lock())
