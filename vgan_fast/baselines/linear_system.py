"""Dynamic textures: a linear dynamic system whose output is a clip.

Doretto, Chiuso, Wu and Soatto, "Dynamic Textures" (IJCV 2003), with their closed-form learning,
which they call suboptimal: the synthesis baseline of the STGConvNet paper.
"""

from dataclasses import dataclass

import numpy as np

from vgan_fast.errors import UserError

LARGEST_RADIUS = 0.999  # of the dynamics' eigenvalues, so that no state grows without bound


@dataclass(frozen=True)
class LinearSystem:
    """frame_t = output x_t + mean, x_{t+1} = dynamics x_t + drive v_t, v_t ~ N(0, I).

    Attributes:
        output: (H W 3, states) fp64, orthonormal columns.
        mean: (H, W, 3) fp64, the clip's mean frame.
        dynamics: (states, states) fp64, with no eigenvalue beyond `LARGEST_RADIUS`.
        drive: (states, states) fp64; its product with its transpose is the residuals' covariance.
        beginnings: (T, states) fp64, the fitted clip's states.
        fitted_radius: the largest eigenvalue's magnitude as fitted; where it is more than
            `LARGEST_RADIUS` all of `dynamics` was scaled back to that.
    """

    output: np.ndarray
    mean: np.ndarray
    dynamics: np.ndarray
    drive: np.ndarray
    beginnings: np.ndarray
    fitted_radius: float

    @classmethod
    def fit(cls, clip: np.ndarray, states: int) -> "LinearSystem":
        """The system of a clip (T, H, W, 3) uint8, by singular values and least squares.

        Output and states are the clip's first `states` principal components; dynamics fit each
        state to the one before.

        Raises:
            UserError: unless there are 1 to T - 2 states: more leave no residual to drive them.
            ValueError: on other shapes or types.
        """
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
            raise ValueError(f"a clip must be uint8 (T, H, W, 3), got {clip.dtype} {clip.shape}")
        frames = len(clip)
        if not 1 <= states <= frames - 2:
            raise UserError(
                f"a linear system of {states} states cannot be fitted to {frames} frames: "
                f"take 1 to {frames - 2} states, or a longer clip"
            )
        mean = clip.mean(0, dtype=np.float64)
        centred = (clip - mean).reshape(frames, -1)
        weights, values, components = np.linalg.svd(centred, full_matrices=False)
        hidden = weights[:, :states] * values[:states]
        dynamics = np.linalg.lstsq(hidden[:-1], hidden[1:], rcond=None)[0].T
        residual = hidden[1:] - hidden[:-1] @ dynamics.T
        _, sizes, directions = np.linalg.svd(residual, full_matrices=False)
        radius = float(np.abs(np.linalg.eigvals(dynamics)).max())
        if radius > LARGEST_RADIUS:
            dynamics *= LARGEST_RADIUS / radius
        return cls(
            output=components[:states].T,
            mean=mean,
            dynamics=dynamics,
            drive=directions.T * sizes / (frames - 1) ** 0.5,
            beginnings=hidden,
            fitted_radius=radius,
        )

    def sample(self, frames: int, seed: int) -> np.ndarray:
        """A clip (frames, H, W, 3) uint8, rounded and clipped to 0..255.

        It begins at a state of the fitted clip, drawn by the seed, so that seeds differ from their
        first frame on.

        Raises:
            ValueError: without frames.
        """
        if frames < 1:
            raise ValueError(f"a sample must have >= 1 frames, got {frames}")
        random = np.random.default_rng(seed)
        state = self.beginnings[random.integers(len(self.beginnings))]
        clip = np.empty((frames, *self.mean.shape), np.uint8)
        for frame in clip:
            picture = self.mean + (self.output @ state).reshape(self.mean.shape)
            frame[:] = picture.round().clip(0, 255)
            state = self.dynamics @ state + self.drive @ random.standard_normal(len(state))
        return clip
