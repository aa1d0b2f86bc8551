"""One environment per file and process, by whatever paths: a second would take away the locks of the first."""

from __future__ import annotations

import os
import threading
from typing import Final

from stepwell.errors import ForkedError, UsageError
from stepwell.storage.lmdb.elastic import ElasticEnvironment
from stepwell.storage.lmdb.opening import Identity, check_place, identity_if_any

environments: dict[Identity, ElasticEnvironment] = {}  # by device and inode: paths may differ
compacting: set[str] = set()  # files that nobody may open in this process until `compact` is done with them
lock = threading.RLock()  # a signal handler or a finalizer may close one log while another is opened


def acquire(
    path: str, handle: object, read_only: bool, network_file_system: bool, verify: bool | int | None
) -> ElasticEnvironment:
    """The environment of a file: opened, or shared with the handles that have it open, until all are released."""
    real_path = os.path.realpath(path)
    check_place(path, real_path, network_file_system)
    with lock:
        if real_path in compacting:
            raise UsageError(f"the log {path!r} is being compacted by this process; open it when that has ended")
        # A file that was removed or replaced is another one: who has the old one open keeps it.
        identity = identity_if_any(real_path)
        if identity in _in_use:
            raise ForkedError(
                f"this process was forked while a call on the log {path!r} was under way in the thread that forked, or "
                "did not end; it cannot open that log: fork elsewhere, or start a process anew (spawn)"
            )
        environment = None if identity is None else environments.get(identity)
        if environment is None:
            environment = ElasticEnvironment(path, real_path, read_only, verify)
            environments[environment.identity] = environment
        else:
            if verify is True:
                environment.check()
            if not read_only:
                environment.make_writable()
        environment.handles.add(handle)
        return environment


def release(environment: ElasticEnvironment, handle: object) -> None:
    """Take a handle back; the last one closes the environment.  May be interrupted, and done again."""
    with lock:
        environment.handles.discard(handle)
        if not environment.handles:
            if environments.get(environment.identity) is environment:
                environments.pop(environment.identity, None)
            environment.close()


# Whoever forks waits until no transaction is open, so that the child finds environments at rest, can close
# its copies of them, and may open the files for itself.  A commit takes milliseconds.  A fork out of a signal
# handler that interrupted a transaction would wait for itself: the child must do without that file.
_FORK_PATIENCE_SECONDS: Final = 5.0
_at_rest: list[ElasticEnvironment] = []
_in_use: set[tuple[int, int]] = set()  # in a forked child: what could not be given back


def _before_fork() -> None:
    lock.acquire()
    for environment in environments.values():
        if environment.rest(_FORK_PATIENCE_SECONDS):
            _at_rest.append(environment)


def _after_fork_in_parent() -> None:
    while _at_rest:
        _at_rest.pop().resume()
    lock.release()


def _after_fork_in_child() -> None:
    """The parent's environments may not be used here; ForkedError says so to whoever tries."""
    global lock
    lock = threading.RLock()
    _in_use.update(environment.identity for environment in environments.values() if environment not in _at_rest)
    environments.clear()
    compacting.clear()
    while _at_rest:
        _at_rest.pop().abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
