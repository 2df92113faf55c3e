"""Processes that train together, on one machine's CPU by gloo, and do what tests ask of them."""

import contextlib
import multiprocessing
import os
import socket
import traceback

SECONDS = 120  # until a test gives up


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


class Together:
    """`count` processes, each of which calls a function of a module with its `Ranks` first."""

    def __init__(self, count):
        context = multiprocessing.get_context("spawn")
        variables = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost"}
        variables |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        self._processes, self._ends = [], []
        for number in range(count):
            end, other = context.Pipe()
            given = other, {**variables, "RANK": str(number)}
            self._processes.append(context.Process(target=_serve, args=given, daemon=True))
            self._processes[-1].start()
            self._ends.append(end)

    def __call__(self, function, *arguments):
        """What the function returns in each process, in their order."""
        for end in self._ends:
            end.send((function, arguments))
        answers = []
        for end in self._ends:
            assert end.poll(SECONDS), "a process hangs"
            answers.append(end.recv())
        for failure, _ in answers:
            assert failure is None, failure
        return [made for _, made in answers]

    def close(self):
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()


def _serve(end, variables):
    os.environ.update(variables)
    import torch

    from vgan_fast.distributed import joined

    torch.set_num_threads(1)
    with joined() as ranks, contextlib.closing(end):
        while (asked := end.recv()) is not None:
            function, arguments = asked
            try:
                end.send((None, function(ranks, *arguments)))
            except BaseException:
                end.send((traceback.format_exc(), None))
