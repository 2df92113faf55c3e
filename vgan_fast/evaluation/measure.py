"""From runs and real clips to a result and its pictures."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from vgan_fast.checkpoint import step_of
from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.errors import UserError
from vgan_fast.evaluation.detectors import Detector
from vgan_fast.evaluation.looking import Seen, look
from vgan_fast.evaluation.memorisation import Nearest, nearest, usual_distances
from vgan_fast.evaluation.metrics import frechet_distance, inception_score
from vgan_fast.evaluation.real import BATCH, RealClips
from vgan_fast.evaluation.result import Number, Preference, Protocol, Result, Row
from vgan_fast.evaluation.statistics import Realism, bootstrap, preference
from vgan_fast.sampling import Sampler

REAL = "real"
LEAST = 4  # clips of a set: two to fit densities to, two that say what is usual
_KINDS = {"features": "features", "pixels": "miniatures"}  # that clips are near by
SHARES_RESAMPLED = 1000  # at least, of preferences and scores, which cost next to nothing


class Evaluation:
    """Real clips, looked at once, that any number of runs are measured against.

    The real clips come in two sets of equal count: the reference, and others that are measured as
    if they were samples, which gives the floor of every number.

    Args:
        real: the clips to measure against.
        training: the clips that runs were trained on.
        detector: for all numbers.
        count: clips of each set; fewer where there are not twice as many real ones.
        training_count: training clips looked at for copies.
        seed: of codes and resampling.
        resamples: of the bootstrap.
        ranks: the processes that share the looking.

    Attributes:
        protocol: of the numbers.
        shortened: whether `count` was lowered for lack of real clips.

    Raises:
        UserError: when there are fewer than eight real clips.
    """

    def __init__(
        self,
        real: RealClips,
        training: RealClips,
        detector: Detector,
        *,
        data: str,
        clip: tuple[int, int],
        count: int,
        training_count: int,
        seed: int,
        resamples: int,
        ranks: Ranks = ALONE,
    ):
        available = count if math.isinf(real.count) else int(real.count) // 2
        if available < LEAST:
            raise UserError(
                f"--data {data}: {real.count} clips in split {real.split}; {2 * LEAST} are "
                "needed: half of them for reference, half to set beside them"
            )
        self.shortened = available < count
        self._count = count = min(count, available)
        self._detector, self._ranks = detector, ranks
        self._seed, self._resamples = seed, resamples
        self.reference = self._look(real.batches, count)
        self.others = self._look(lambda first, n: real.batches(count + first, n), count)
        there = int(min(training_count, training.count))
        self.training = self._look(training.batches, there, shown=there)
        others = self.others if real.held_out else None
        self._usual = {
            kind: usual_distances(getattr(self.training, of), others and getattr(others, of))
            for kind, of in _KINDS.items()
        }
        self.protocol = Protocol(
            data=data,
            fingerprint=real.fingerprint,
            split=real.split,
            held_out=real.held_out,
            frames=clip[0],
            size=clip[1],
            stride=real.cut.stride,
            fps=real.cut.fps,
            min_frames=real.cut.min_frames,
            count=count,
            training_count=there,
            seed=seed,
            detector=detector.label,
            detector_sha256=detector.sha256,
            dimensions=self.reference.features.shape[1],
            resize=detector.resize,
            resamples=resamples,
        )

    def look_at(self, sampler: Sampler) -> Seen:
        """As many samples of a run as there are real clips in a set."""
        codes = sampler.codes(self._count, self._seed)
        return self._look(
            lambda first, count: sampler.batches(codes[first : first + count]),
            self._count,
            shown=self._count,
        )

    def result(
        self,
        seen: dict[str, Seen],
        near: dict[str, dict[str, Nearest]],
        checkpoints: dict[str, Path],
    ) -> Result:
        """All numbers of models, by name: their samples, the nearest clips, where they are from."""
        sets = {**seen, REAL: self.others}
        realism = Realism(self.reference.features)
        scores = {name: realism(of.features) for name, of in sets.items()}
        return Result(
            self.protocol,
            [
                self._row(name, of, near.get(name, {}), checkpoints.get(name))
                for name, of in sets.items()
            ],
            [
                Preference(a, b, self._number(preference, [scores[a], scores[b]], (0, 1), True))
                for a, b in itertools.combinations(sets, 2)
            ],
        )

    def nearest_to(self, seen: Seen) -> dict[str, Nearest]:
        """Distances to training clips, by the detector's features and by pixels of miniatures."""
        return {
            kind: nearest(getattr(seen, of), getattr(self.training, of), self._usual[kind])
            for kind, of in _KINDS.items()
        }

    def _look(
        self,
        batches: Callable[[int, int], Iterator[dict[str, Tensor]]],
        count: int,
        shown: int = 8,
    ) -> Seen:
        """Look at `count` clips, each process at its part; `batches` take a first one and how many.

        Batches are those of one process alone, so that features are the same to the bit.
        """
        own = self._ranks.part(-(-count // BATCH))
        first, last = own.start * BATCH, min(own.stop * BATCH, count)
        return look(batches(first, last - first), self._detector, shown - first, self._ranks)

    def _row(self, name: str, seen: Seen, near: dict[str, Nearest], checkpoint: Path | None) -> Row:
        return Row(
            name=name,
            checkpoint=checkpoint and str(checkpoint),
            step=step_of(checkpoint) if checkpoint else None,
            frechet=self._number(
                frechet_distance, [seen.features, self.reference.features], (0, math.inf)
            ),
            inception=None
            if seen.logits is None
            else self._number(inception_score, [seen.logits], (1, math.inf), True),
            statistics={
                **seen.statistics,
                "motion / real": _ratio(seen, self.reference, "motion"),
                "flicker / real": _ratio(seen, self.reference, "flicker"),
            },
            nearest={
                kind: {"median ratio": of.median_ratio, "closer": of.closer}
                for kind, of in near.items()
            },
        )

    def _number(
        self, statistic, samples: list[Tensor], bounds: tuple[float, float], cheap: bool = False
    ) -> Number:
        resamples = max(SHARES_RESAMPLED, self._resamples) if cheap else self._resamples
        return bootstrap(statistic, samples, resamples, self._seed, bounds)


def _ratio(seen: Seen, real: Seen, name: str) -> float:
    return seen.statistics[name] / max(real.statistics[name], 1e-12)
