"""What an experiment of transfer does, with presets."""

from dataclasses import dataclass, field
from fractions import Fraction

from vgan_fast.errors import UserError

METHODS = ("fine-tuned", "logistic", "random")


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Options:
    """How classifiers are trained and compared.

    Raises:
        UserError: for a value out of range.
    """

    methods: str = _option(
        "fine-tuned,logistic,random",
        "the discriminator's body trained on, logistic regression on its frozen features, and the "
        "same network from random weights",
    )
    fractions: str = _option("1,1/2,1/4,1/8", "shares of the training videos whose labels are used")
    seeds: int = _option(5, "repetitions: labelled videos, weights, order, and test videos drawn")
    steps: int = _option(1000, "training steps of a classifier")
    batch_size: int = _option(256, "clips in a batch")
    lr: float = _option(2e-4, "learning rate")
    clips_per_video: int = _option(
        4, "clips of each video, evenly from its beginning to its end, in training and test"
    )
    test_share: float = _option(0.25, "share of each class's videos that test, without a test set")
    videos: int = _option(512, "labelled training clips of 'synthetic-motions'")
    test_videos: int = _option(512, "its test clips")

    def __post_init__(self):
        _ = self.method_names, self.shares
        bounds = {
            "seeds": (1, 1000),
            "steps": (1, 10**6),
            "batch_size": (2, 2**16),
            "clips_per_video": (1, 1000),
            "videos": (1, 10**6),
            "test_videos": (1, 10**6),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{_flag(name)}: must lie between {least} and {most}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr {self.lr}: must be positive")
        if not 0 < self.test_share < 1:
            raise UserError(f"--test-share {self.test_share}: must lie between 0 and 1")

    @property
    def method_names(self) -> list[str]:
        """The methods, in the order given, each once."""
        names = list(dict.fromkeys(name.strip() for name in self.methods.split(",")))
        for name in names:
            if name not in METHODS:
                raise UserError(f"--methods: {name!r} is none of {', '.join(METHODS)}")
        return names

    @property
    def shares(self) -> list[Fraction]:
        """The fractions, the largest first, each once."""
        try:
            shares = {Fraction(text.strip()) for text in self.fractions.split(",")}
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"--fractions {self.fractions}: give numbers such as 1,1/2,0.25"
            ) from None
        for share in shares:
            if not 0 < share <= 1:
                raise UserError(f"--fractions: {share} must be above 0 and at most 1")
        return sorted(shares, reverse=True)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


PRESETS: dict[str, dict] = {
    "paper": {},
    "short": {"steps": 100, "batch_size": 32},
}
