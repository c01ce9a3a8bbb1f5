"""cdn-geospatial: places, areas and what moves; OGC API Features, nearest, geofences."""
