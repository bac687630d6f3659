"""Features as points in the plane: near ones stay near."""

from __future__ import annotations

import warnings

import numpy as np

FEWEST_FOR_TSNE = 10
PERPLEXITY = 30.0
ITERATIONS = 500  # of a thousand by default, whose second half moves few hundred points little
COMPONENTS = 50  # that t-SNE is given of more, as its authors do


def in_the_plane(features: np.ndarray) -> np.ndarray:
    """float [n, 2] of finite features [n, D], each axis from 0 to 1, the same points for the same features.

    t-SNE (van der Maaten & Hinton, JMLR 2008), begun from the principal components, of which alone the map is made
    where points are few. Distances between far groups mean little.
    """
    points = principal_components(features, COMPONENTS)
    if len(points) >= FEWEST_FOR_TSNE and np.ptp(points) > 0:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
        with (
            threadpool_limits(1),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of points that are the same
            found = TSNE(init="pca", random_state=0, perplexity=perplexity, max_iter=ITERATIONS)
            points = found.fit_transform(points.astype(np.float32))
    points = points[:, :2].astype(np.float64)
    low, extent = points.min(0), np.ptp(points, axis=0)
    scaled: np.ndarray = (points - low) / np.where(extent > 0, extent, 1)
    return scaled


def method(n: int) -> str:
    return "t-SNE" if n >= FEWEST_FOR_TSNE else "principal components"


def principal_components(features: np.ndarray, most: int) -> np.ndarray:
    """float64 [n, k]: coordinates along the axes of most variance, k at least 2; each axis' sign is that of its largest
    loading, so that they do not depend on the library."""
    centred = features.astype(np.float64) - features.astype(np.float64).mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:most]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    found = centred @ (axes * np.where(signs == 0, 1, signs)[:, None]).T
    return np.pad(found, ((0, 0), (0, max(2 - found.shape[1], 0))))
