"""Decoders that misbehave. Worker processes import them by name, so they stand in their own file.

What each does depends on the source's name: a file called "good…" is decoded properly, one called
"half…" by PyAV only.
"""

import errno
import itertools
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np

from vgan_fast.loaders import decode
from vgan_fast.loaders.decode import decode_source
from vgan_fast.loaders.decoders import Picture, Settings, UndecodableError


def _is_spared(source: Path, decoder: str) -> bool:
    return source.name.startswith("good") or (source.name.startswith("half") and decoder == "PyAV")


def crashes(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    if not _is_spared(source, decoder):
        target.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_source(source, target, decoder, settings)


def killed_once(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    """As by the kernel for want of memory; "bad…" is killed for ever, as if it took all of it."""
    killed = source.with_name(f"{source.name}.killed")
    if not killed.exists() or source.name.startswith("bad"):
        target.write_bytes(b"half a file")
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_source(source, target, decoder, settings)


def hangs(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    if not _is_spared(source, decoder):
        target.write_bytes(b"half a file")
        time.sleep(600)
    return decode_source(source, target, decoder, settings)


def takes_all_memory(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    if not _is_spared(source, decoder):
        held = []
        while len(held) < 64:  # the tests themselves stay bounded
            held.append(np.empty(1 << 28, np.uint8))
    return decode_source(source, target, decoder, settings)


def never_ends(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    """A decoder that yields one frame for ever, which may be stored 1000 times."""

    def endless(source: Path, settings: Settings):
        frame = np.zeros((48, 48, 3), np.uint8)
        return (Picture(frame, (48, 48), number / 25, 25.0) for number in itertools.count())

    decode.MAX_FRAMES = 1000
    if not _is_spared(source, decoder):
        decode.DECODERS[decoder] = endless
    try:
        return decode_source(source, target, decoder, settings)
    finally:
        decode.DECODERS.update(OpenCV=decode.frames_by_opencv, PyAV=decode.frames_by_pyav)


def lacks_nvdec(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    """Note each try beside the source; NVDEC succeeds with files called "nvdec…" only."""
    if decoder == "NVDEC":
        time.sleep(0.2)
        source.with_suffix(".tried").touch()
        if not source.name.startswith("nvdec"):
            raise UndecodableError("NVDEC: no such device")
        decoder = "OpenCV"
    return decode_source(source, target, decoder, settings)


def notes_threads(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    with open(source.with_suffix(".threads"), "a") as file:
        file.write(f"{settings.threads};")
    return decode_source(source, target, decoder, settings)


def hangs_on_nvdec(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    if decoder == "NVDEC":
        time.sleep(600)
    return decode_source(source, target, decoder, settings)


def disk_full(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    decode_source(source, target, decoder, settings)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file_too_large(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    """The operating system itself refuses to write more than 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return decode_source(source, target, decoder, settings)


def forbidden(source: Path, target: Path, decoder: str, settings: Settings) -> float | None:
    raise AssertionError(f"{source} is in the cache and must not be decoded again")
