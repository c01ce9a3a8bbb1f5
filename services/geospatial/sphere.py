"""Distances on the sphere, and the boxes of longitude and latitude that hold all within a distance. Pure.

The sphere has the Earth's mean radius: distances are within 0.6 % of those on the ellipsoid of WGS 84.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from services.geospatial.geojson import Bounds

RADIUS_M = 6_371_008.8
"""The Earth's mean radius, IUGG."""
HALF_WAY_M = math.pi * RADIUS_M
_SLACK = 1e-9
"""Degrees; a tenth of a millimetre, more than rounding loses."""


def distances(lon: float, lat: float, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Metres along the great circle from one position to each of the others."""
    lat_r, lats_r = math.radians(lat), np.radians(lats)
    half = np.sin((lats_r - lat_r) / 2) ** 2
    half += math.cos(lat_r) * np.cos(lats_r) * np.sin(np.radians(lons - lon) / 2) ** 2
    metres: NDArray[np.float64] = 2 * RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))
    return metres


def windows_within(lon: float, lat: float, distance_m: float) -> list[Bounds]:
    """One or two boxes that hold every position within the distance."""
    angle = distance_m / RADIUS_M
    south, north = lat - math.degrees(angle) - _SLACK, lat + math.degrees(angle) + _SLACK
    if south <= -90.0 or north >= 90.0:  # a pole lies within, and with it every longitude
        return [(-180.0, max(south, -90.0), 180.0, min(north, 90.0))]
    # Meridians touch the circle nearer to the pole than its centre is.
    width = math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(lat))))) + _SLACK
    return split(lon - width, south, lon + width, north)


def split(west: float, south: float, east: float, north: float) -> list[Bounds]:
    """The box, in two if it crosses the antimeridian: by west over east, or by leaving -180 to 180."""
    if east - west >= 360.0:
        return [(-180.0, south, 180.0, north)]
    if west < -180.0:
        return [(west + 360.0, south, 180.0, north), (-180.0, south, east, north)]
    if east > 180.0:
        return [(west, south, 180.0, north), (-180.0, south, east - 360.0, north)]
    if west > east:
        return [(west, south, 180.0, north), (-180.0, south, east, north)]
    return [(west, south, east, north)]
