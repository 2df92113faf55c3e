"""A page about a set, with pictures: what was filmed, what its clips hold of it, what is in none.

What was filmed is decoded from the sources once more, by what the manifest tells of a clip.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished, written_whole

from ..cache import DECODERS, MEMORY, death
from ..decode import DecodedFrames
from ..decoders import Settings, UndecodableError
from ..search import Source
from ..shards import open_npy, open_tar
from ..strips import BrokenStripError, Strip, decode_strip
from .outcome import Outcome, VideoOutcome, read_manifest, read_outcome, read_rejected
from .run import Plan
from .stabilise import Cutting
from .video import Recipe, Record

REPORT, PAGE = "report", "index.html"
_TEMPLATE = "report.html.j2"
_SIDE = 128  # pixels of a frame in a picture, at most
_SHOWN = 8  # frames in a film strip
_STRIPS = 12  # clips shown before and after
_SHEET = 100  # clips on the contact sheet
_EXAMPLES = 3  # of each reason
_STRETCH = 32  # frames of a rejected stretch that its strip is spread over
_LISTED = 200  # rows of a table
_GAP = 12  # pixels between the pairs of rows in the picture of all
# Frames: what comes later in a video is shown only where nothing else is, for all before it must be
# decoded as well.
_EARLY = 300
_SECONDS = 120  # that decoding may take until it counts as hung
_MOTIONS = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)  # pixels of a clip, upper bounds of bins
_RATIOS = tuple(tenth / 10 for tenth in range(11))


def write_report(plan: Plan) -> Path:
    """Draw the report of a set that is complete, in place of an earlier one; return its page.

    A source that is gone or cannot be decoded costs its pictures, and the page says so.

    Raises:
        UserError: it cannot be written, or a shard cannot be read.
    """
    # It imports torch, which the process that decodes has no use for.
    from vgan_fast.pictures import animated_grid, film_strip, write_picture

    outcome = read_outcome(plan.out)
    survey = _survey(plan.out, outcome.total.clips)
    reasons = _reasons(plan.out)
    shards = _Shards(plan)
    clips = [_Film(told, _spread(told["frames"])) for told in _instructive(survey.early)]
    stretches = [film for reason in reasons.values() for film in reason.examples]
    _film(clips + stretches, plan)

    report = plan.out / REPORT
    remove_unfinished(plan.out, REPORT)
    with explained(report):
        if report.exists():
            shutil.rmtree(report)
    with written_whole(report, folder=True) as folder:

        def draw(name: str, picture: np.ndarray) -> str:
            write_picture(folder / name, picture)
            return name

        pairs = []
        for number, film in enumerate(clips, 1):
            if film.frames is not None:
                stored = shards.frames(film.told, film.places)
                film.step = float(cv2.absdiff(film.frames[0], stored[0]).mean())
                pairs.append(film_strip(np.stack((film.frames, stored))))
                film.picture = draw(f"clip_{number:02}.png", pairs[-1])
        for number, film in enumerate(stretches, 1):
            if film.frames is not None:
                strip = film_strip(film.frames[None])
                film.picture = draw(f"rejected_{number:02}.png", strip)
        pictures = {}
        if pairs:
            pictures["before_after"] = draw("before_after.png", _below_each_other(pairs))
        if survey.sheet:
            middles = [shards.frames(told, [told["frames"] // 2]) for told in survey.sheet]
            pictures["contact_sheet"] = draw(
                "contact_sheet.png", animated_grid(np.stack(middles))[0]
            )
        html = _page(plan, outcome, survey, clips, reasons, pictures)
        # Names of files may be no UTF-8.
        (folder / PAGE).write_bytes(html.encode(errors="backslashreplace"))
    return report / PAGE
