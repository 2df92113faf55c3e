"""Processes, memory, descriptors and leftovers of a process and its descendants, from /proc."""

import contextlib
import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

SHARED = Path("/dev/shm")
_NEW_MOUNTS, _RECURSIVE_PRIVATE = 0x20000, 0x4000 | 0x40000  # of Linux's sched.h and mount.h


def own_shared_memory() -> bool:
    """Give this process and its children an empty /dev/shm of their own, where the system lets us.

    Otherwise they go on sharing the machine's.
    """
    system = ctypes.CDLL(None)
    return (
        system.unshare(_NEW_MOUNTS) == 0
        and system.mount(None, b"/", None, _RECURSIVE_PRIVATE, None) == 0
        and system.mount(b"tmpfs", str(SHARED).encode(), b"tmpfs", 0, None) == 0
    )


@dataclass(frozen=True)
class Sample:
    """What a family holds at a moment."""

    resident_mb: float  # memory of all processes; pages that several share count for each
    descriptors: int
    threads: int
    processes: int
    shared: int  # names in /dev/shm
    temporary: int  # names in the folder for temporary files


def sample(pid: int, temporary: Path) -> Sample:
    """What a process and its descendants hold now."""
    resident = descriptors = threads = processes = 0
    for member in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            of = Path(f"/proc/{member}")
            opened = len(os.listdir(of / "fd"))
            status = dict(line.split(":", 1) for line in (of / "status").read_text().splitlines())
            resident += int(status["VmRSS"].split()[0]) / 1024 if "VmRSS" in status else 0
            threads += int(status["Threads"])
            descriptors += opened
            processes += 1
    return Sample(
        resident, descriptors, threads, processes, len(names(SHARED)), len(names(temporary))
    )


def names(folder: Path) -> set[str]:
    """What lies directly in a folder; nothing where there is none."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and theirs, dead ones left out."""
    children: dict[int, list[int]] = {}
    for member, (parent, _) in _parents_and_sessions().items():
        children.setdefault(parent, []).append(member)
    found, at = [], [pid]
    while at:
        at = [child for parent in at for child in children.get(parent, ())]
        found += at
    return found


def of_session(session: int) -> list[int]:
    """Processes of a session, dead ones left out: descendants of its leader, orphans included."""
    return [pid for pid, (_, own) in _parents_and_sessions().items() if own == session]


def gone_within(session: int, seconds: float) -> bool:
    """Wait until no process of a session is left; whether that came in time."""
    deadline = time.monotonic() + seconds
    while of_session(session):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _parents_and_sessions() -> dict[int, tuple[int, int]]:
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name, in brackets, may hold anything.
                rest = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if rest[0] != "Z":
                    found[int(entry)] = int(rest[1]), int(rest[3])
    return found
