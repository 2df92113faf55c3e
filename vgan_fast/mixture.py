"""An autoencoder's codes and a Gaussian mixture over them: what its new clips are made of."""

import numpy as np
import torch
from torch import Tensor, nn

from vgan_fast.errors import UserError

CODES = 8192  # of the latest clips, which the mixture is fitted to
COMPONENTS = 256  # the paper's


class LatestCodes(nn.Module):
    """A ring of the latest codes, written without waiting for the device.

    Attributes:
        ring: (`CODES`, latent) fp32.
        count: codes added so far, int64 scalar.
    """

    def __init__(self, latent: int):
        super().__init__()
        self.register_buffer("ring", torch.zeros(CODES, latent))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def add(self, codes: Tensor) -> None:
        """Put codes (N, latent) in the place of the oldest; of more than fit the last ones stay."""
        codes = codes[-CODES:]
        places = torch.arange(len(codes), device=codes.device)
        self.ring.index_copy_(0, (places + self.count) % CODES, codes.float())
        self.count += len(codes)

    def latest(self) -> Tensor:
        """Those added so far that are still here, (n, latent)."""
        return self.ring[: min(int(self.count), CODES)]


class Mixture:
    """A mixture of Gaussians with diagonal covariances, fitted to codes by scikit-learn.

    The paper gives the number of components, `COMPONENTS`, and not the form of their covariances.
    Fewer than two codes a component are too few: there are then half as many components as codes.

    Args:
        codes: (n, latent), n >= 2.

    Raises:
        UserError: with fewer than two codes, or without scikit-learn.
    """

    def __init__(self, codes: Tensor):
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise UserError(
                "clips of an autoencoder need scikit-learn: pip install 'vgan_fast[experiments]'"
            ) from error
        if len(codes) < 2:
            raise UserError("the autoencoder has seen no clips yet: train it for some steps")
        components = min(COMPONENTS, len(codes) // 2)
        mixture = GaussianMixture(
            components, covariance_type="diag", max_iter=50, tol=1e-2, random_state=0
        )
        mixture.fit(codes.double().cpu().numpy())
        self._weights, self._means = mixture.weights_, mixture.means_
        self._deviations = np.sqrt(mixture.covariances_)

    def draw(self, count: int, seed: int) -> Tensor:
        """Codes (count, latent) fp32; the first ones of a seed do not depend on their number."""
        random = np.random.default_rng(seed)
        rows = []
        for _ in range(count):
            component = random.choice(len(self._weights), p=self._weights)
            noise = random.standard_normal(self._means.shape[1])
            rows.append(self._means[component] + self._deviations[component] * noise)
        return torch.from_numpy(np.stack(rows)).float()
