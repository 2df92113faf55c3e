"""Programs forked from a process that has their libraries loaded: they start in milliseconds.

What is measured by starting a program hundreds of times would else be the import of PyTorch. This
file imports next to nothing, for the processes that a program spawns run it once more.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


class Forked:
    """A program that has been forked, the leader of a session of its own.

    Attributes:
        pid: of its process.
        status: what it ended with, negative a signal; None as long as it runs.
    """

    def __init__(self, pid: int, replies: int):
        self.pid = pid
        self.status: int | None = None
        self._replies = replies

    def wait(self, seconds: float) -> int | None:
        """Its status, if it ends within that time."""
        if self.status is None and select.select([self._replies], [], [], seconds)[0]:
            self.status = os.waitstatus_to_exitcode(int(_line(self._replies)))
        return self.status


class Zygote:
    """The process that has the libraries loaded.

    Args:
        environment: of the programs.
    """

    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, "-m", "benchmarks.zygote"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def start(self, arguments: list[str], temporary: Path, said: Path, told: Path) -> Forked:
        """Fork `arguments`, the name of a program and what follows it.

        Args:
            arguments: of the command line, without `python -m vgan_fast.`.
            temporary: folder for its temporary files.
            said, told: files that its output and its errors go to.
        """
        order = [arguments, str(temporary), str(said), str(told)]
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        replies = self._process.stdout.fileno()
        return Forked(int(_line(replies)), replies)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextlib.contextmanager
def zygote(environment: dict[str, str]) -> Iterator[Zygote]:
    """A `Zygote` for the length of a block."""
    process = Zygote(environment)
    try:
        yield process
    finally:
        process.close()


def first_line(said: Path, program: Forked, seconds: float) -> None:
    """Wait until a program has said something, has ended, or that long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and program.wait(0.005) is None:
        if b"\n" in said.read_bytes():
            return


def _line(descriptor: int) -> str:
    """A line from a pipe, byte by byte: nothing of the next is taken."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            raise EOFError("the process that forks programs is gone")
        line += piece
    return line.decode()


def _main() -> None:
    """Fork what standard input asks for; tell its process, and later its status."""
    programs = _load()
    for order in sys.stdin:
        arguments, temporary, said, told = json.loads(order)
        pid = os.fork()
        if pid == 0:
            _run(programs[arguments[0]], arguments, temporary, said, told)
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{status}\n".encode())


def _load() -> dict:
    import av  # noqa: F401
    import nvidia.dali  # noqa: F401
    import scenedetect  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    from vgan_fast import gan_step, prepare, train, trainer  # noqa: F401
    from vgan_fast.loaders import clips, graph  # noqa: F401
    from vgan_fast.loaders.preparation import report, run  # noqa: F401

    return {"train": train.main, "prepare": prepare.main}


def _run(program, arguments: list[str], temporary: str, said: str, told: str) -> None:
    os.setsid()
    os.environ["TMPDIR"] = temporary
    for number, path in ((1, said), (2, told)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = [f"vgan_fast.{arguments[0]}", *arguments[1:]]
    program.main(arguments[1:])


if __name__ == "__main__":
    _main()
