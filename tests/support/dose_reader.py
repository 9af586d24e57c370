"""Reads an RT Dose as any other program would, in DICOM coordinates; shares no code with what writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom


class DoseFile:
    """`values` in Gy, indexed [x, y, z]; `x`, `y`, `z` are the voxel centres (mm) in the patient's frame."""

    def __init__(self, path: Path) -> None:
        self.dataset = dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (32, 32, 31)
        assert (dataset.PixelRepresentation, dataset.SamplesPerPixel, dataset.DoseUnits) == (0, 1, "GY")
        assert dataset.FrameIncrementPointer == 0x3004000C
        stored = np.frombuffer(dataset.PixelData, dtype="<u4")
        shape = (int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns)
        self.scaling = float(dataset.DoseGridScaling)
        self.values = stored.reshape(shape).transpose(2, 1, 0) * self.scaling
        first = [float(v) for v in dataset.ImagePositionPatient]
        assert [float(v) for v in dataset.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        row_spacing, column_spacing = (float(v) for v in dataset.PixelSpacing)
        self.x = first[0] + column_spacing * np.arange(dataset.Columns)
        self.y = first[1] + row_spacing * np.arange(dataset.Rows)
        self.z = first[2] + np.array([float(v) for v in dataset.GridFrameOffsetVector])

    def energy(self) -> float:
        """Energy (J) in the grid, were all of it water of 1 g/cm3."""
        voxel_mm3 = (self.x[1] - self.x[0]) * (self.y[1] - self.y[0]) * (self.z[1] - self.z[0])
        return float(self.values.sum() * voxel_mm3 * 1e-6)

    def centroid(self) -> tuple[float, float]:
        """Mean place of the dose in x and y, mm."""
        lateral = self.values.sum(axis=2)
        total = lateral.sum()
        return float(lateral.sum(axis=1) @ self.x / total), float(lateral.sum(axis=0) @ self.y / total)

    def range80(self, entrance: float) -> float:
        """Depth (mm) below `entrance` (z, mm; the beam runs towards -z) of the distal 80 %, interpolated."""
        order = np.argsort(-self.z)
        depth, curve = entrance - self.z[order], self.values.sum(axis=(0, 1))[order]
        level = 0.8 * curve.max()
        below = int(np.flatnonzero(curve >= level)[-1]) + 1
        assert below < len(curve), "the dose does not fall to 80 % within the grid"
        return float(np.interp(level, [curve[below], curve[below - 1]], [depth[below], depth[below - 1]]))
