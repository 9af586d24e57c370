"""Protons in water: range from NIST PSTAR, depth dose after Bortfeld (Med. Phys. 24, 1997)."""

from __future__ import annotations

import math

import numpy as np

GY_PER_MEV_PER_G = 1.602176634e-10

# NIST PSTAR, liquid water: energy (MeV), CSDA range (g/cm2).
_PSTAR = (
    (10, 0.1230), (20, 0.4260), (30, 0.8853), (40, 1.489), (50, 2.227), (60, 3.093), (70, 4.080),
    (80, 5.184), (90, 6.398), (100, 7.718), (125, 11.46), (150, 15.77), (175, 20.62), (200, 25.96),
    (225, 31.74), (250, 37.94),
)  # fmt: skip
_P = 1.77
_ALPHA = 0.0022
_FINE = 0.1
"""Step of the fine depth grid, mm."""


def csda_range_mm(energy: float) -> float:
    """CSDA range in water (mm) of protons of `energy` (MeV): log-log between PSTAR's values."""
    x, y = zip(*_PSTAR)
    if not x[0] <= energy <= x[-1]:
        raise ValueError(f"{energy:g} MeV is outside the range table, {x[0]} to {x[-1]} MeV")
    return 10.0 * math.exp(float(np.interp(math.log(energy), np.log(x), np.log(y))))


def straggling_mm(energy: float) -> float:
    """Width (mm) of range straggling and a 0.3 % energy spread (Bortfeld 1997, eq. 18 and 19)."""
    r0 = csda_range_mm(energy) / 10.0
    mono = 0.012 * r0**0.935
    spread = 0.003 * energy * _ALPHA * _P * energy ** (_P - 1)
    return 10.0 * math.hypot(mono, spread)


def lateral_sigma_mm(energy: float) -> float:
    """Width (mm) of a spot in water, larger for lower energies."""
    return 3.0 + 300.0 / energy


def depth_dose(energy: float, edges: np.ndarray) -> np.ndarray:
    """Energy deposited per mm and proton (MeV/mm), averaged over the depth bins between `edges` (mm, rising).

    Straggling-free depth dose with nuclear losses (Bortfeld 1997, eq. 11 to 13), folded with a Gaussian. The
    curve's distal 80 % lies at the range: R80 is the range of the mean energy.
    """
    r0 = csda_range_mm(energy)
    sigma = straggling_mm(energy)
    reach = r0 + 6.0 * sigma
    fine = np.arange(0.0, reach + _FINE, _FINE)
    left = np.clip((r0 - fine) / 10.0, 0.0, None)
    # Cumulative energy above a depth: exact integral of the singular curve, so that no bin sees the pole.
    scale = (r0 / 10.0) ** (1.0 / _P)
    remaining = energy * (left ** (1.0 / _P)) / scale
    fluence = (1.0 + 0.012 * left) / (1.0 + 0.012 * r0 / 10.0)
    deposited = -np.diff(remaining) * 0.5 * (fluence[:-1] + fluence[1:])
    deposited += 0.6 * np.clip(-np.diff(fluence), 0.0, None) * 0.5 * (remaining[:-1] + remaining[1:])
    half = math.ceil(5.0 * sigma / _FINE)
    offsets = np.arange(-half, half + 1) * _FINE
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    # The beam begins upstream of the face: pad there, so that the entrance is not eroded.
    padded = np.concatenate([np.full(half, deposited[0]), deposited, np.zeros(half)])
    folded = np.convolve(padded, kernel, mode="valid")
    cumulative = np.concatenate([[0.0], np.cumsum(folded)])
    at = np.arange(len(cumulative)) * _FINE
    return np.diff(np.interp(edges, at, cumulative)) / np.diff(edges)


def lateral(edges: np.ndarray, centres: np.ndarray, sigma: float) -> np.ndarray:
    """Share of each spot (at `centres`, mm) in each bin between `edges` (mm): spots x bins."""
    scaled = (edges[None, :] - centres[:, None]) / (sigma * math.sqrt(2.0))
    return 0.5 * np.diff(_erf(scaled), axis=1)


def _erf(x: np.ndarray) -> np.ndarray:
    """Error function to 1.2e-7 (Numerical Recipes' erfcc); scipy is not everywhere."""
    z = np.abs(x)
    t = 1.0 / (1.0 + 0.5 * z)
    terms = (
        -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587,
        -0.82215223, 0.17087277,
    )  # fmt: skip
    poly = np.zeros_like(t)
    for term in reversed(terms):
        poly = poly * t + term
    erfc = t * np.exp(-z * z + poly)
    return np.where(x >= 0, 1.0 - erfc, erfc - 1.0)
