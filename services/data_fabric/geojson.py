"""Rows as GeoJSON's features, RFC 7946. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from cdn_daemon.api import RefusedError
from services.data_fabric.geometry import Geometry
from services.data_fabric.infer import Value

_PAIRS = (("lon", "lat"), ("lng", "lat"), ("longitude", "latitude"))


_GEOMETRY = msgspec.json.Decoder(Geometry)
_JSON = msgspec.json.Encoder()


class Places(Struct, frozen=True):
    """Which columns are no properties: that of the id, and that of the geometry or those of its lon and lat."""

    id: int | None
    geometry: int | None
    lon: int | None = None
    lat: int | None = None


def places(columns: Sequence[str], asked: Mapping[str, str]) -> Places:
    """As asked for by id=, geometry=, or lon= and lat=, else by the columns' usual names; raises RefusedError."""
    known = {name.lower(): at for at, name in enumerate(columns)}

    def at(role: str, *usual: str) -> int | None:
        if role in asked:
            if asked[role].lower() not in known:
                raise RefusedError(
                    400, f"cannot find the column of {role}=", value=asked[role], limit=", ".join(columns)
                )
            return known[asked[role].lower()]
        return next((known[name] for name in usual if name in known), None)

    identity = at("id", "feature_id", "id", "_rowid_")
    if "lon" not in asked and "lat" not in asked:
        geometry = at("geometry", "geometry")
        if geometry is not None:
            return Places(identity, geometry)
        for pair in _PAIRS:
            if known.keys() >= set(pair):
                return Places(identity, None, known[pair[0]], known[pair[1]])
    lon, lat = at("lon"), at("lat")
    if lon is None or lat is None:
        raise RefusedError(
            400,
            "cannot tell where these rows are",
            value=", ".join(columns),
            limit="a column geometry, or lon and lat",
            next="name them: &geometry=COLUMN, or &lon=COLUMN&lat=COLUMN",
        )
    return Places(identity, None, lon, lat)


def features(columns: Sequence[str], rows: Sequence[tuple[Value, ...]], at: Places) -> bytes:
    """The rows as the inside of an array of features; raises RefusedError for what is no geometry."""
    aside = {at.id, at.geometry, at.lon, at.lat}
    named = [(place, name) for place, name in enumerate(columns) if place not in aside]
    made = []
    for row in rows:
        feature: dict[str, object] = {"type": "Feature", "geometry": _geometry(row, at)}
        identity = row[at.id] if at.id is not None else None
        if isinstance(identity, str | int | float):
            feature["id"] = identity
        feature["properties"] = {name: row[place] for place, name in named}
        made.append(feature)
    return _JSON.encode(made)[1:-1]


def _geometry(row: tuple[Value, ...], at: Places) -> object:
    if at.geometry is not None:
        value = row[at.geometry]
        if value is None:
            return None
        try:
            return _GEOMETRY.decode(value if isinstance(value, str | bytes) else str(value))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RefusedError(422, f"cannot take this for a geometry of GeoJSON: {error}", value=value) from error
    assert at.lon is not None
    assert at.lat is not None
    lon, lat = row[at.lon], row[at.lat]
    if lon is None or lat is None:
        return None
    if (
        not isinstance(lon, int | float)
        or not isinstance(lat, int | float)
        or not abs(lat) <= 90
        or not abs(lon) <= 360
    ):
        raise RefusedError(
            422, "cannot take this for longitude and latitude", value=f"{lon!r}, {lat!r}", limit="degrees, WGS 84"
        )
    return {"type": "Point", "coordinates": (lon, lat)}
