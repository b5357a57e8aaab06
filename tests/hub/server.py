"""The server: repository info, file trees, files with ranges and hashes, and the error codes that clients act on.

Files of a model lie in ``models/OWNER/NAME``, those of a data set in ``datasets/OWNER/NAME/REVISION``, where a slash in the
name of a revision is written ``~``. Every repository has one commit, the hash of its files' names and contents.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WHEN = "2026-01-01T00:00:00.000Z"


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 while the block runs; yields the address for ``HF_ENDPOINT``."""
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@cache
def digest(path: Path) -> str:
    """SHA-256 of a file, which is its ETag."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def commit(folder: Path) -> str:
    """The 40 digits that stand for the state of a repository."""
    names = "".join(f"{path.relative_to(folder)} {digest(path)}\n" for path in files(folder))
    return hashlib.sha1(names.encode()).hexdigest()


def files(folder: Path) -> list[Path]:
    """All files of a repository."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


class Missing(Exception):
    """What was asked for is not there; its text is the error code that the clients know."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *_: Any) -> None:
        """Say nothing: a rehearsal has its own output."""

    def do_GET(self) -> None:
        """Answer; also for HEAD, which gets the headers only."""
        parts = self._parts()
        try:
            if parts[:1] == ["api"]:
                self._api(parts[1:])
            else:
                self._file(parts)
        except Missing as error:
            self._send(404, {"error": str(error)}, {"X-Error-Code": str(error), "X-Error-Message": str(error)})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """The one question that is asked this way: which of some paths exist."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = json.loads(body) if body.startswith("{") else parse_qs(body)
        parts = self._parts()
        try:
            if len(parts) < 6 or parts[0] != "api" or parts[4] != "paths-info":
                raise Missing("EntryNotFound")
            folder = self._repository(parts[1], parts[2:4], "/".join(parts[5:]))
            paths = asked.get("paths", [])
            paths = [paths] if isinstance(paths, str) else paths
            self._send(200, [self._entry(folder, folder / path) for path in paths if (folder / path).exists()])
        except Missing as error:
            self._send(404, {"error": str(error)}, {"X-Error-Code": str(error)})

    def _parts(self) -> list[str]:
        """The names in the path, without those that would lead out of the folder."""
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")]
        return [part for part in parts if part not in ("", ".", "..") and "/../" not in f"/{part}/"]

    def _api(self, parts: list[str]) -> None:
        """``KIND/OWNER/NAME``, alone or with ``revision/REV`` or ``tree/REV/PATH``."""
        if len(parts) < 3 or parts[0] not in ("models", "datasets"):
            raise Missing("RepoNotFound")
        kind, name, rest = parts[0], parts[1:3], parts[3:]
        if rest[:1] == ["tree"]:
            folder = self._repository(kind, name, rest[1])
            below = folder.joinpath(*rest[2:])
            if not below.is_dir():
                raise Missing("EntryNotFound")
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            found = sorted(below.rglob("*") if recursive else below.iterdir())
            return self._send(200, [self._entry(folder, path) for path in found])
        if rest and rest[0] != "revision":
            raise Missing("EntryNotFound")
        folder = self._repository(kind, name, "/".join(rest[1:]) or "main")
        identity = "/".join(name)
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files(folder)]
        facts = {"_id": "1", "id": identity, "modelId": identity, "author": name[0], "sha": commit(folder), "cardData": {}}
        facts |= {"private": False, "gated": False, "disabled": False, "downloads": 1, "likes": 1, "tags": []}
        return self._send(200, facts | {"lastModified": WHEN, "createdAt": WHEN, "siblings": siblings})

    def _file(self, parts: list[str]) -> None:
        """``[datasets/]OWNER/NAME/resolve/REV/PATH``, whole or a range of bytes."""
        kind = "datasets" if parts[:1] == ["datasets"] else "models"
        parts = parts[kind == "datasets" :]
        if len(parts) < 5 or parts[2] != "resolve":
            raise Missing("RepoNotFound")
        folder = self._repository(kind, parts[:2], parts[3])
        path = folder.joinpath(*parts[4:])
        headers = {"X-Repo-Commit": commit(folder)}
        if not path.is_file():  # with the commit: the client then knows that the file is absent, not the repository
            return self._send(404, {"error": "EntryNotFound"}, headers | {"X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}
        content, status = path.read_bytes(), 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.partition("=")[2].partition("-")
            start = int(first) if first else max(0, len(content) - int(last))  # "-10": the last ten bytes
            end = min(int(last), len(content) - 1) if first and last else len(content) - 1
            if start > end:
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        return self._send(status, content, headers)

    def _repository(self, kind: str, name: list[str], revision: str) -> Path:
        folder = self.root.joinpath(kind, *name)
        if not folder.is_dir():
            raise Missing("RepoNotFound")
        if kind == "models":
            if revision not in ("main", commit(folder)):
                raise Missing("RevisionNotFound")
            return folder
        for candidate in folder.iterdir():
            if revision in (candidate.name.replace("~", "/"), commit(candidate)):
                return candidate
        raise Missing("RevisionNotFound")

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
        last = {"id": commit(folder), "title": "all", "date": WHEN}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)[:40], "lastCommit": last}

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
