"""A stand-in for the Hugging Face hub: as much of its HTTP interface as repositories of small files need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Hub", "running_hub"]


class Hub:
    """Repositories by name: the files of their last commit.

    Attributes:
        files: of each repository.
        private: those that were made so.
        refuse: the status that everything that is sent is answered with; None to take it in.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.refuse: int | None = None
        self.url = ""

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> str:
        """Take in what a commit brings; returns its name."""
        for line in lines:
            if line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.files[repo][line["value"]["path"]]
        return self.revision(repo)

    def revision(self, repo: str) -> str:
        """40 hexadecimal digits that change with the files."""
        digest = hashlib.sha1()
        for name, data in sorted(self.files[repo].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.fullmatch(r"/api/(?:models/(.+)/(preupload|commit)/main(?:\?.*)?|(.+))", self.path)
        assert found is not None
        if self.hub.refuse is not None:
            self.json({"error": "not today"}, self.hub.refuse)
        elif found[3] == "repos/create":
            self.create(json.loads(data))
        elif found[2] == "preupload":
            names = [each["path"] for each in json.loads(data)["files"]]
            self.json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif found[2] == "commit":
            name = self.hub.commit(found[1], [json.loads(line) for line in data.splitlines()])
            self.json({"success": True, "commitOid": name, "commitUrl": f"{self.hub.url}/{found[1]}/commit/{name}"})
        else:
            self.json({"errors": [], "warnings": []})  # of the card's metadata

    def create(self, asked: dict[str, Any]) -> None:
        repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        self.hub.files.setdefault(repo, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        self.json({"url": f"{self.hub.url}/{repo}", "id": repo})

    def do_GET(self) -> None:
        tree = re.fullmatch(r"/api/models/(.+?)/tree/main(?:\?.*)?", self.path)
        if tree is not None:
            files = self.hub.files[tree[1]].items()
            oids = {name: hashlib.sha1(data).hexdigest() for name, data in files}
            self.json([{"type": "file", "path": name, "size": len(data), "oid": oids[name]} for name, data in files])
            return
        found = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
        files = self.hub.files.get(found[1]) if found is not None else None
        if found is None or files is None:
            self.json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif found[3] not in files:
            self.json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            data = files[found[3]]
            self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=self.hub.revision(found[1]))

    do_HEAD = do_GET


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The stand-in, answering at `hub.url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
