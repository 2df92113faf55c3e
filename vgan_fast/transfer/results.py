"""What came of each training: accuracies, their intervals over seeds, table and picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from vgan_fast.files import written_whole

CONFIDENCE = 0.95
_COLOURS = {"fine-tuned": "tab:blue", "logistic": "tab:green", "random": "tab:orange"}
_NAMED_CLASSES = 20  # most whose names fit beside a confusion matrix


@dataclass(frozen=True)
class Score:
    """One classifier on one test set.

    Attributes:
        split, seed, method, fraction: which one.
        videos: number of labelled videos that it trained on.
        clip: share of the test clips told right.
        video: share of the test videos told right by the mean of their clips' probabilities.
        confusion: int (classes, classes), test videos by true class (row) and told class.
    """

    split: str
    seed: int
    method: str
    fraction: Fraction
    videos: int
    clip: float
    video: float
    confusion: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, **which) -> "Score":
        """Score probabilities (V, K, classes) of V videos of K clips against labels (V,)."""
        classes = probabilities.shape[2]
        told = probabilities.mean(axis=1).argmax(axis=1)
        confusion = np.zeros((classes, classes), np.int64)
        np.add.at(confusion, (labels, told), 1)
        clip = float((probabilities.argmax(axis=2) == labels[:, None]).mean())
        return cls(clip=clip, video=float((told == labels).mean()), confusion=confusion, **which)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval, NaN for a single seed."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Student's t-interval of the mean, of `CONFIDENCE`."""
        from scipy.stats import t

        values = np.asarray(values, float)
        half = float("nan")
        if len(values) > 1:
            error = values.std(ddof=1) / np.sqrt(len(values))
            half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error)
        mean = float(values.mean())
        return cls(mean, mean - half, mean + half)

    def __format__(self, spec: str) -> str:
        if np.isnan(self.low):
            return f"{self.mean:{spec}}"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


class Results:
    """All scores of a run of the program.

    Args:
        scores: of every split, seed, method and fraction.
        classes: names by label.
        chance: share told right by always naming the commonest class of the test videos.
    """

    def __init__(self, scores: list[Score], classes: list[str], chance: float):
        self.scores, self.classes, self.chance = scores, classes, chance
        self.methods = list(dict.fromkeys(score.method for score in scores))
        self.fractions = sorted({score.fraction for score in scores}, reverse=True)

    def accuracies(self, method: str, fraction: Fraction, what: str = "video") -> np.ndarray:
        """Accuracy at each seed, the mean over splits, float64 (seeds,)."""
        of = [s for s in self.scores if (s.method, s.fraction) == (method, fraction)]
        seeds = sorted({score.seed for score in of})
        return np.array([np.mean([getattr(s, what) for s in of if s.seed == k]) for k in seeds])

    def labelled(self, fraction: Fraction) -> float:
        """Mean number of labelled videos at a fraction."""
        return float(np.mean([s.videos for s in self.scores if s.fraction == fraction]))

    @property
    def compared(self) -> bool:
        """Whether there is a gain to speak of: both ways of training are there."""
        return {"fine-tuned", "random"} <= set(self.methods)

    def difference(self, fraction: Fraction) -> Estimate:
        """Fine-tuned minus random, in pairs of the same seed, videos and splits."""
        tuned, random = (self.accuracies(m, fraction) for m in ("fine-tuned", "random"))
        return Estimate.of(tuned - random)

    def gain(self, fraction: Fraction) -> Estimate:
        """Fine-tuned over random, in the same pairs (paper figure 4c)."""
        tuned, random = (self.accuracies(m, fraction) for m in ("fine-tuned", "random"))
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate.of(tuned / random)

    @property
    def best(self) -> str:
        """The method of the highest video accuracy at the largest fraction."""
        return max(self.methods, key=lambda m: self.accuracies(m, self.fractions[0]).mean())

    def confusion(self, method: str) -> np.ndarray:
        """Confusion matrix at the largest fraction, summed over seeds and splits."""
        largest = self.fractions[0]
        return sum(s.confusion for s in self.scores if (s.method, s.fraction) == (method, largest))

    def table(self) -> str:
        """Markdown: a row for each fraction, accuracies in percent with their intervals."""
        header = ["labels", "videos"]
        header += [f"{method}, {what}s" for method in self.methods for what in ("video", "clip")]
        if self.compared:
            header += ["fine-tuned − random", "fine-tuned / random"]
        rows = []
        for fraction in self.fractions:
            row = [str(fraction), f"{self.labelled(fraction):g}"]
            for method in self.methods:
                row.append(f"{Estimate.of(100 * self.accuracies(method, fraction)):.1f}")
                row.append(f"{100 * self.accuracies(method, fraction, 'clip').mean():.1f}")
            if self.compared:
                points = self.difference(fraction)
                points = Estimate(*(100 * v for v in (points.mean, points.low, points.high)))
                row += [f"{points:+.1f}", f"{self.gain(fraction):.2f}"]
            rows.append(row)
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def verdict(self) -> str:
        """One sentence on the smallest fraction; empty where the two are not compared."""
        if not self.compared:
            return ""
        fraction = self.fractions[-1]
        d = self.difference(fraction)
        points = f"{100 * d.mean:+.1f} points"
        if np.isnan(d.low):
            return f"At {fraction} of the labels fine-tuned is {points} from random: one seed."
        word = "better than" if d.low > 0 else "worse than" if d.high < 0 else "not told apart from"
        return (
            f"At {fraction} of the labels fine-tuned is {word} random initialisation: {points}, "
            f"95 % interval {100 * d.low:+.1f} to {100 * d.high:+.1f}."
        )

    def record(self) -> dict:
        """Plain values of every score, and the confusion matrices at the largest fraction."""
        return {
            "classes": self.classes,
            "chance": self.chance,
            "scores": [
                {
                    "split": s.split,
                    "seed": s.seed,
                    "method": s.method,
                    "fraction": str(s.fraction),
                    "videos": s.videos,
                    "clip accuracy": s.clip,
                    "video accuracy": s.video,
                }
                for s in self.scores
            ],
            "confusion": {method: self.confusion(method).tolist() for method in self.methods},
        }

    def draw(self, path: Path) -> None:
        """Write the picture: accuracy, relative gain, and the best method's confusion matrix.

        Raises:
            UserError: when it cannot be written.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(14 if self.compared else 10, 4.2), layout="constrained")
        axes = list(figure.subplots(1, 3 if self.compared else 2))
        self._draw_curve(axes.pop(0))
        if self.compared:
            self._draw_gain(axes.pop(0))
        self._draw_confusion(figure, axes.pop(0))
        with written_whole(path) as part:
            figure.savefig(part, dpi=100, format="png")

    def _draw_curve(self, axes) -> None:
        for method in self.methods:
            of = [Estimate.of(100 * self.accuracies(method, f)) for f in self.fractions]
            self._errorbar(axes, of, method, _COLOURS[method])
        axes.axhline(100 * self.chance, color="grey", linestyle=":", label="chance")
        axes.set_ylabel("test videos told right, %")
        axes.set_title("Accuracy by labels")
        # Below: curves of any shape are in the way of a legend among them.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, frameon=False)

    def _draw_gain(self, axes) -> None:
        self._errorbar(axes, [self.gain(f) for f in self.fractions], None, "tab:blue")
        axes.axhline(1, color="grey", linestyle=":")
        axes.set_ylabel("accuracy, fine-tuned / random")
        axes.set_title("Relative gain")

    def _errorbar(self, axes, of: list[Estimate], label: str | None, colour: str) -> None:
        means = np.array([e.mean for e in of])
        half = np.nan_to_num(np.array([e.high - e.mean for e in of]))
        numbers = [self.labelled(fraction) for fraction in self.fractions]
        axes.errorbar(numbers, means, half, label=label, color=colour, marker="o", capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(
            numbers, [f"{n:g}\n({f})" for n, f in zip(numbers, self.fractions, strict=True)]
        )
        axes.minorticks_off()
        axes.set_xlabel("labelled videos (share)")

    def _draw_confusion(self, figure, axes) -> None:
        counts = self.confusion(self.best)
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        figure.colorbar(image, ax=axes, label="share of the true class")
        if len(self.classes) <= _NAMED_CLASSES:
            axes.set_xticks(range(len(self.classes)), self.classes, rotation=90, fontsize=7)
            axes.set_yticks(range(len(self.classes)), self.classes, fontsize=7)
        axes.set_xlabel("told")
        axes.set_ylabel("true")
        axes.set_title(f"{self.best}, all labels")
