"""The page: the files in ``page/``, as they are. No build step, and nothing from elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cdn_daemon.web import error_body

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """``/`` and ``/page/…``; read once, so that a path of a client's never reaches the file system."""
    files = {str(path.relative_to(FOLDER)): path for path in FOLDER.rglob("*") if path.suffix in TYPES}
    contents = {name: (path.read_bytes(), TYPES[path.suffix]) for name, path in files.items()}
    tags = {name: f'"{hashlib.sha256(content).hexdigest()[:24]}"' for name, (content, _) in contents.items()}

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in contents:
            body = error_body(404, "cannot find this file of the page", value=name[:200], next="GET /")
            return Response(body, status_code=404, media_type="application/json")
        content, media_type = contents[name]
        headers = {"ETag": tags[name], "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return [Route("/", file, methods=["GET"]), Route("/page/{name:path}", file, methods=["GET"])]
