"""The OpenAPI 3.0 document of the service: what Part 1 prescribes, and what is beyond it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from services.geospatial.limits import Limits
from services.geospatial.questions import FORMATS

Json = dict[str, Any]
MEDIA_TYPE = "application/vnd.oai.openapi+json;version=3.0"
CONFORMANCE = tuple(
    f"http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/{name}" for name in ("core", "oas30", "geojson")
)


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _content(media_type: str, schema: str) -> Json:
    return {media_type: {"schema": _ref("schemas", schema)}}


def _answers(schema: str, media_type: str = "application/json", status: str = "200") -> Json:
    return {
        status: {"description": "As asked for.", "content": _content(media_type, schema)},
        "default": _ref("responses", "Error"),
    }


def _done(*statuses: str) -> Json:
    said = {"200": "Done.", "201": "Made.", "204": "Done."}
    return {**{status: {"description": said[status]} for status in statuses}, "default": _ref("responses", "Error")}


def _get(summary: str, id: str, tag: str, parameters: Iterable[Json], answers: Json) -> Json:
    return {"summary": summary, "operationId": id, "tags": [tag], "parameters": list(parameters), "responses": answers}


def _order(summary: str, id: str, tag: str, answers: Json, body: Json | None = None) -> Json:
    order = {"summary": summary, "operationId": id, "tags": [tag], "responses": answers, "security": [{"token": []}]}
    return order if body is None else {**order, "requestBody": {"required": True, "content": body}}


def _query(name: str, schema: Json, description: str, *, is_required: bool = False) -> Json:
    return {
        "name": name,
        "in": "query",
        "required": is_required,
        "description": description,
        "schema": schema,
        "style": "form",
        "explode": False,
    }


def _path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def document(base: str, collections: Sequence[tuple[str, Sequence[str]]], limits: Limits) -> Json:
    """The document; of each collection its name and those of its properties."""
    format, point = _ref("parameters", "f"), [_ref("parameters", "lon"), _ref("parameters", "lat")]
    geojson = "application/geo+json"
    upload = {geojson: {"schema": {"type": "object"}}, "application/x-ndjson": {"schema": {"type": "string"}}}
    one = {geojson: {"schema": _ref("schemas", "Feature")}}
    paths: Json = {
        "/": {"get": _get("Landing page", "getLandingPage", "core", [format], _answers("Links"))},
        "/conformance": {"get": _get("What it conforms to", "conformance", "core", [format], _answers("Conformance"))},
        "/api": {
            "get": _get("This document", "api", "core", [format], _answers("Any", MEDIA_TYPE)),
        },
        "/collections": {"get": _get("Collections", "getCollections", "core", [format], _answers("Links"))},
        "/tracks": {"post": _order("Positions of objects", "move", "tracks", _done("200"), _content(_JSON, "Any"))},
        "/tracks/{object}": {
            "parameters": [_path("object")],
            "get": _get(
                "Where an object was",
                "getTrack",
                "tracks",
                [_ref("parameters", "datetime"), _ref("parameters", "limit")],
                _answers("Feature", geojson),
            ),
            "put": _order("Where it was, or is", "putTrack", "tracks", _done("200"), _content(_JSON, "Any")),
            "delete": _order("Forget it", "deleteTrack", "tracks", _done("204")),
        },
        "/fences": {"get": _get("Fences", "getFences", "fences", [], _answers("FeatureCollection", geojson))},
        "/fences/{fence}": {
            "parameters": [_path("fence")],
            "get": _get("A fence", "getFence", "fences", [], _answers("Feature", geojson)),
            "put": _order("Set it", "putFence", "fences", _done("201", "204"), one),
            "delete": _order("Take it away", "deleteFence", "fences", _done("204")),
        },
        "/crossings": {
            "get": _get(
                "Who has crossed which fence",
                "getCrossings",
                "fences",
                [_ref("parameters", name) for name in ("limit", "after", "fence", "object")],
                _answers("Any"),
            )
        },
    }
    for name, properties in collections:
        path, id = f"/collections/{name}", "".join(letter if letter.isalnum() else "_" for letter in name)
        page = [_ref("parameters", each) for each in ("bbox", "datetime", "limit", "offset", "after", "f")]
        taken = {"bbox", "datetime", "limit", "offset", "after", "f"}
        filters = [
            _query(each, {"type": "string"}, "Only features with this value.")
            for each in properties
            if each not in taken
        ]
        paths |= {
            path: {
                "get": _get("The collection", f"describe_{id}", name, [format], _answers("Links")),
                "put": _order("Replace it", f"replace_{id}", name, _done("200", "201"), upload),
                "delete": _order("Delete it", f"drop_{id}", name, _done("204")),
            },
            f"{path}/items": {
                "get": _get(
                    "Features", f"getFeatures_{id}", name, [*page, *filters], _answers("FeatureCollection", geojson)
                ),
                "post": _order("Add features", f"add_{id}", name, _done("201"), upload),
            },
            f"{path}/items/{{featureId}}": {
                "parameters": [_path("featureId")],
                "get": _get("A feature", f"getFeature_{id}", name, [format], _answers("Feature", geojson)),
                "put": _order("Set it", f"set_{id}", name, _done("201", "204"), one),
                "delete": _order("Delete it", f"delete_{id}", name, _done("204")),
            },
            f"{path}/nearest": {
                "get": _get(
                    "The nearest, by great circle",
                    f"nearest_{id}",
                    name,
                    [*point, _ref("parameters", "k"), _ref("parameters", "within_m"), format],
                    _answers("FeatureCollection", geojson),
                )
            },
            f"{path}/contains": {
                "get": _get(
                    "Areas with the position in them",
                    f"contains_{id}",
                    name,
                    [*point, _ref("parameters", "limit"), format],
                    _answers("FeatureCollection", geojson),
                )
            },
        }
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "cdn-geospatial",
            "version": "1",
            "description": "Places, areas and what moves. OGC API Features, nearest, point in polygon, geofences.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": [{"url": base or "/"}],
        "paths": paths,
        "components": {
            "parameters": _parameters(limits),
            "responses": {"Error": {"description": "Why not.", "content": _content(_JSON, "Error")}},
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


_JSON = "application/json"


def _parameters(limits: Limits) -> Json:
    box = {
        "type": "array",
        "oneOf": [{"minItems": 4, "maxItems": 4}, {"minItems": 6, "maxItems": 6}],
        "items": {"type": "number"},
    }
    limit = {"type": "integer", "minimum": 1, "maximum": limits.page, "default": limits.page_default}
    count = {"type": "integer", "minimum": 0, "default": 0}
    lon, lat = ({"type": "number", "minimum": -most, "maximum": most} for most in (180, 90))
    return {
        "bbox": _query("bbox", box, "west,south,east,north; west over east crosses the antimeridian"),
        "datetime": _query("datetime", {"type": "string"}, "An instant, or an interval with .. for an open end"),
        "limit": _query("limit", limit, "The most in one answer"),
        "offset": _query("offset", count, "So many are left out first"),
        "after": _query("after", count, "As a next link has it"),
        "f": _query("f", {"type": "string", "enum": list(FORMATS)}, "JSON is all there is"),
        "lon": _query("lon", lon, "Degrees", is_required=True),
        "lat": _query("lat", lat, "Degrees", is_required=True),
        "k": _query("k", {"type": "integer", "minimum": 1, "maximum": limits.nearest, "default": 1}, "How many"),
        "within_m": _query("within_m", {"type": "number", "minimum": 0}, "No farther than this"),
        "fence": _query("fence", {"type": "string"}, "Of this one"),
        "object": _query("object", {"type": "string"}, "Of this one"),
    }


_SCHEMAS: Json = {
    "Any": {"type": "object"},
    "Link": {
        "type": "object",
        "required": ["href", "rel"],
        "properties": {
            "href": {"type": "string"},
            "rel": {"type": "string"},
            "type": {"type": "string"},
            "title": {"type": "string"},
        },
    },
    "Links": {
        "type": "object",
        "required": ["links"],
        "properties": {"links": {"type": "array", "items": {"$ref": "#/components/schemas/Link"}}},
    },
    "Conformance": {
        "type": "object",
        "required": ["conformsTo"],
        "properties": {"conformsTo": {"type": "array", "items": {"type": "string"}}},
    },
    "Feature": {
        "type": "object",
        "required": ["type", "geometry", "properties"],
        "properties": {
            "type": {"type": "string", "enum": ["Feature"]},
            "id": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            "geometry": {"type": "object", "nullable": True},
            "properties": {"type": "object", "nullable": True},
        },
    },
    "FeatureCollection": {
        "type": "object",
        "required": ["type", "features"],
        "properties": {
            "type": {"type": "string", "enum": ["FeatureCollection"]},
            "features": {"type": "array", "items": {"$ref": "#/components/schemas/Feature"}},
            "links": {"type": "array", "items": {"$ref": "#/components/schemas/Link"}},
            "timeStamp": {"type": "string", "format": "date-time"},
            "numberMatched": {"type": "integer", "minimum": 0},
            "numberReturned": {"type": "integer", "minimum": 0},
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["status", "what"],
                "properties": {
                    "status": {"type": "integer"},
                    "what": {"type": "string"},
                    "value": {"type": "string", "nullable": True},
                    "limit": {"type": "string", "nullable": True},
                    "next": {"type": "string", "nullable": True},
                },
            }
        },
    },
}
