"""A beam's log to the dose on the phantom's grid.

The phantom is water. The beam runs along z, enters at the face of the highest z, and goes towards -z; the
log's x and y are the grid's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .physics import GY_PER_MEV_PER_G, depth_dose, lateral, lateral_sigma_mm

_STEP = 0.5
"""Step of the lattice that spots are put on, mm: well below their width."""
_REACH = 8.0
"""Widths of a spot beyond which it gives no dose."""


@dataclass
class Grid:
    """Voxels, voxel size (mm) and lower corner (mm), each in x, y, z."""

    size: tuple
    unit: tuple
    position: tuple

    def edges(self, axis):
        """Edges of the voxels along an axis, mm."""
        return self.position[axis] + self.unit[axis] * np.arange(self.size[axis] + 1, dtype=float)


@dataclass
class Layer:
    """Energy (MeV) and samples: x (mm), y (mm), count."""

    energy: float
    samples: np.ndarray


def compute(grid: Grid, layers: list, protons_per_count: float) -> np.ndarray:
    """Dose in Gy, shape (nz, ny, nx)."""
    nx, ny, nz = grid.size
    depth_edges = (grid.unit[2] * np.arange(nz + 1)).astype(float)
    curves = np.zeros((nz, len(layers)))
    maps = np.zeros((len(layers), ny * nx))
    for n, layer in enumerate(layers):
        # Depth counts from the high-z face; the array's z rises.
        curves[:, n] = depth_dose(layer.energy, depth_edges)[::-1]
        sigma = lateral_sigma_mm(layer.energy)
        near = _near(grid, layer.samples, _REACH * sigma)
        if not len(near):
            continue
        xs, ys, counts = _binned(near)
        in_x = lateral(grid.edges(0), xs, sigma)
        in_y = lateral(grid.edges(1), ys, sigma)
        maps[n] = (in_y.T @ (counts @ in_x)).ravel()
    # MeV/mm over mm2 of water of 1e-3 g/mm3.
    curves *= protons_per_count * GY_PER_MEV_PER_G / (grid.unit[0] * grid.unit[1] * 1e-3)
    return (curves @ maps).reshape(nz, ny, nx)


def _near(grid: Grid, samples: np.ndarray, reach: float) -> np.ndarray:
    """The samples within `reach` (mm) of the grid: the lattice must not span one that lies far off."""
    inside = np.ones(len(samples), dtype=bool)
    for axis in (0, 1):
        edges, at = grid.edges(axis), samples[:, axis]
        inside &= (at > edges[0] - reach) & (at < edges[-1] + reach)
    return samples[inside]


def _binned(samples: np.ndarray) -> tuple:
    """Samples shared out linearly among the points of a fine lattice, which keeps their mean place.

    Returns the lattice's x and y (mm), and the counts, shape (len(y), len(x)).
    """
    axes, low, rest = [], [], []
    for axis in (0, 1):
        start = np.floor(samples[:, axis].min() / _STEP) * _STEP
        place = (samples[:, axis] - start) / _STEP
        low.append(np.floor(place).astype(int))
        rest.append(place - low[-1])
        axes.append(start + _STEP * np.arange(low[-1].max() + 2))
    counts = np.zeros((len(axes[1]), len(axes[0])))
    for dx in (0, 1):
        for dy in (0, 1):
            share = (rest[0] if dx else 1.0 - rest[0]) * (rest[1] if dy else 1.0 - rest[1])
            np.add.at(counts, (low[1] + dy, low[0] + dx), share * samples[:, 2])
    return axes[0], axes[1], counts
