"""GeoJSON as RFC 7946 has it: read, checked, measured. Pure.

What is kept of a feature is its id, geometry and properties; other members are dropped, as section 6.1 permits.
Coordinates are longitude, latitude and perhaps a height, in WGS 84. The order of a ring's positions is not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from services.geospatial import times
from services.geospatial.limits import Limits
from services.geospatial.times import Interval

Position = Annotated[list[float], Meta(min_length=2, max_length=3)]
Line = Annotated[list[Position], Meta(min_length=2)]
Ring = Annotated[list[Position], Meta(min_length=4)]
Rings = Annotated[list[Ring], Meta(min_length=1)]
Bounds = tuple[float, float, float, float]
"""West, south, east, north; degrees."""

FID_CHARS = 256
NAME_CHARS = 256


class Point(Struct, frozen=True, tag="Point"):
    coordinates: Position


class MultiPoint(Struct, frozen=True, tag="MultiPoint"):
    coordinates: Annotated[list[Position], Meta(min_length=1)]


class LineString(Struct, frozen=True, tag="LineString"):
    coordinates: Line


class MultiLineString(Struct, frozen=True, tag="MultiLineString"):
    coordinates: Annotated[list[Line], Meta(min_length=1)]


class Polygon(Struct, frozen=True, tag="Polygon"):
    coordinates: Rings


class MultiPolygon(Struct, frozen=True, tag="MultiPolygon"):
    coordinates: Annotated[list[Rings], Meta(min_length=1)]


class GeometryCollection(Struct, frozen=True, tag="GeometryCollection"):
    geometries: Annotated[list[Raw], Meta(min_length=1, max_length=1000)]


Geometry = Point | MultiPoint | LineString | MultiLineString | Polygon | MultiPolygon | GeometryCollection


class _Feature(Struct, frozen=True, tag="Feature"):
    geometry: Raw
    """Raw, as null is a geometry too, and as it is stored as it came."""
    properties: dict[str, Raw] | None
    id: str | float | None = None


class FeatureCollection(Struct, frozen=True, tag="FeatureCollection"):
    features: list[Raw]


class Feature(Struct, frozen=True, kw_only=True):
    """A feature that was checked."""

    fid: str | None
    """None: it has none yet."""
    geometry: bytes
    properties: bytes
    bounds: Bounds | None
    """None: it has no geometry."""
    is_point: bool
    vertices: int
    time: Interval | None
    names: tuple[str, ...]
    """Of its properties whose values are text, numbers or truths."""

    def body(self, fid: str) -> str:
        """The feature as it is stored and sent."""
        id = msgspec.json.encode(fid)
        return (
            b'{"type":"Feature","id":%b,"geometry":%b,"properties":%b}' % (id, self.geometry, self.properties)
        ).decode()


class BadGeoJSON(ValueError):
    """What was sent is no GeoJSON that can be taken; the text says why."""


_geometry = msgspec.json.Decoder(Geometry)
_feature = msgspec.json.Decoder(_Feature)
_collection = msgspec.json.Decoder(FeatureCollection)
_any = msgspec.json.Decoder()
_SCALAR = frozenset(b'"-0123456789tf')


def read_features(body: bytes) -> Iterator[Raw | bytes]:
    """What is in a FeatureCollection, a Feature, or NDJSON of features; not yet checked. Raises BadGeoJSON."""
    start = body[:4096].lstrip(b"\x1e\r\n\t ")
    try:
        if b'"FeatureCollection"' in start or b'"features"' in start:
            yield from _collection.decode(body).features
            return
        try:
            yield msgspec.json.decode(body, type=Raw)  # one feature
        except msgspec.DecodeError:
            for line in body.splitlines():  # RFC 8142 has a record separator before each
                if line := line.strip(b"\x1e \t\r"):
                    yield line
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadGeoJSON(f"cannot read the features: {error}") from error


def read_feature(raw: Raw | bytes, limits: Limits) -> Feature:
    """A feature; raises BadGeoJSON."""
    if len(memoryview(raw)) > limits.feature_bytes:
        raise BadGeoJSON(f"it has {len(memoryview(raw))} bytes, the limit is {limits.feature_bytes}")
    try:
        found = _feature.decode(raw)
        properties = found.properties or {}
        fid = _fid(found.id)
        geometry = bytes(found.geometry)
        bounds, is_point, vertices = (None, False, 0) if geometry == b"null" else measured(geometry, limits)
        names = tuple(
            name
            for name, value in properties.items()
            if memoryview(value)[0] in _SCALAR and 0 < len(name) <= NAME_CHARS and '"' not in name
        )
        timed = {name: _any.decode(properties[name]) for name in names if name in _TIMES}
        plain = b"{}" if found.properties is None else msgspec.json.encode(properties)
        _any.decode(plain)  # raw values were not looked into: they may be nested too deeply, or hold bad text
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadGeoJSON(str(error)) from error
    except RecursionError as error:
        raise BadGeoJSON("it is nested too deeply") from error
    return Feature(
        fid=fid,
        geometry=geometry,
        properties=plain,
        bounds=bounds,
        is_point=is_point,
        vertices=vertices,
        time=times.of_properties(timed),
        names=names,
    )


_TIMES = frozenset([*times.NAMES, *(name for span in times.SPANS for name in span)])


def _fid(id: str | float | None) -> str | None:
    if id is None:
        return None
    text = id if isinstance(id, str) else f"{id:.0f}" if id == int(id) else repr(id)
    if not 0 < len(text) <= FID_CHARS or not text.isprintable() or "/" in text:
        raise BadGeoJSON(f"its id {text[:50]!r} must be 1 to {FID_CHARS} printable characters without '/'")
    return text


def measured(geometry: bytes, limits: Limits, depth: int = 0) -> tuple[Bounds, bool, int]:
    """Bounds, whether it is one point, and how many positions it has; raises BadGeoJSON and msgspec's errors."""
    found = _geometry.decode(geometry)
    if isinstance(found, GeometryCollection):
        if depth >= limits.depth:
            raise BadGeoJSON(f"geometry collections are nested deeper than {limits.depth}")
        parts = [measured(bytes(one), limits, depth + 1) for one in found.geometries]
        vertices = sum(count for _, _, count in parts)
        _few(vertices, limits)
        boxes = [bounds for bounds, _, _ in parts]
        low = [min(box[at] for box in boxes) for at in (0, 1)]
        high = [max(box[at] for box in boxes) for at in (2, 3)]
        return (low[0], low[1], high[0], high[1]), False, vertices
    if isinstance(found, Point):
        lon, lat = found.coordinates[:2]
        if not (-180.0 <= lon <= 180.0 and -90.0 <= lat <= 90.0):
            raise _outside(lon, lat)
        return (lon, lat, lon, lat), True, 1
    for ring in _rings(found):
        if ring[0] != ring[-1]:
            raise BadGeoJSON(f"a ring that begins at {ring[0]} must end there, not at {ring[-1]}")
    lons, lats = [], []
    for position in _positions(found):
        lons.append(position[0])
        lats.append(position[1])
    _few(len(lons), limits)
    west, south, east, north = min(lons), min(lats), max(lons), max(lats)
    if not (west >= -180.0 and east <= 180.0 and south >= -90.0 and north <= 90.0):
        raise _outside(west if west < -180.0 else east, south if south < -90.0 else north)
    return (west, south, east, north), False, len(lons)


def _few(vertices: int, limits: Limits) -> None:
    if vertices > limits.vertices:
        raise BadGeoJSON(f"it has {vertices} positions, the limit is {limits.vertices}")


def _outside(lon: float, lat: float) -> BadGeoJSON:
    return BadGeoJSON(f"longitude {lon:g} must be -180 to 180, and latitude {lat:g} -90 to 90")


def _rings(geometry: Geometry) -> Iterable[list[Any]]:
    match geometry:
        case Polygon(coordinates):
            return coordinates
        case MultiPolygon(coordinates):
            return [ring for rings in coordinates for ring in rings]
    return ()


def _positions(geometry: Geometry) -> Iterable[list[float]]:
    match geometry:
        case MultiPoint(coordinates) | LineString(coordinates):
            return coordinates
        case MultiLineString(coordinates) | Polygon(coordinates):
            return [position for line in coordinates for position in line]
        case MultiPolygon(coordinates):
            return [position for rings in coordinates for ring in rings for position in ring]
    return ()
