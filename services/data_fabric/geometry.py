"""What a geometry of GeoJSON is. Pure; the process that converts files needs it, and nothing of the web."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Raw, Struct, UnsetType


class Geometry(Struct, omit_defaults=True):
    """A geometry; what its coordinates say, others judge."""

    type: Literal[
        "Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection"
    ]
    coordinates: Raw | UnsetType = UNSET
    geometries: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Raises ValueError where there is nothing of it."""
        needed = self.geometries if self.type == "GeometryCollection" else self.coordinates
        if isinstance(needed, UnsetType) or bytes(needed)[:1] != b"[":
            raise ValueError(f"a {self.type} without its coordinates")
