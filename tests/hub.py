"""A server on this machine that stands in for the Hugging Face hub, as far as its client library speaks with it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub.utils import close_session

TOKEN = "hf_" + "a" * 34


@dataclass
class Repository:
    """Files of a repository, by name."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: int = 0

    @property
    def commit(self) -> str:
        return f"{self.commits:040d}"


@dataclass
class Hub:
    """What the server holds, and how it behaves."""

    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository -> status and error code of every answer about it."""
    cut: set[str] = field(default_factory=set)
    """Files, as ``org/name/file``, of which the connection breaks off."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each."""


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):  # noqa: N802
        path = self._path()
        if path[:2] == ["api", "models"]:
            return self._describe(path)
        repository = "/".join(path[:2])
        if self._refused(repository):
            return None
        name = "/".join(path[4:])
        content = self.hub.repositories[repository].files.get(name)
        if content is None:
            return self._answer(404, code="EntryNotFound")
        headers = {
            "ETag": f'"{sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.repositories[repository].commit,
        }
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        cut = f"{repository}/{name}" in self.hub.cut
        length = {"Content-Length": str(len(content) - start)}
        self._answer(206 if start else 200, content[start : start + 100 if cut else None], headers | length)
        self.close_connection = cut
        return None

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self):  # noqa: N802
        path, body = self._path(), self.rfile.read(int(self.headers["Content-Length"]))
        if path == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if path == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if path[2:] == ["info", "lfs", "objects", "batch"]:
            return self._json({"objects": [self._upload(item) for item in json.loads(body)["objects"]]})
        repository = self.hub.repositories["/".join(path[2:4])]
        if path[4] == "preupload":
            return self._json({"files": [self._mode(repository, file["path"]) for file in json.loads(body)["files"]]})
        assert path[4] == "commit", path
        for line in body.splitlines():
            self._change(repository, **json.loads(line))
        repository.commits += 1
        url = f"{self.hub.address}/{'/'.join(path[2:4])}/commit/{repository.commit}"
        return self._json({"commitUrl": url, "commitOid": repository.commit})

    def do_PUT(self):  # noqa: N802
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert sha256(content).hexdigest() == self._path()[1]
        self.hub.uploads[self._path()[1]] = content
        self._answer(200)

    def _path(self) -> list[str]:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def _refused(self, repository: str) -> bool:
        known = self.hub.repositories.get(repository)
        allowed = known is not None and (not known.private or self.headers["Authorization"] == f"Bearer {TOKEN}")
        if refusal := self.hub.refusals.get(repository) or (None if allowed else (401, "RepoNotFound")):
            self._answer(refusal[0], code=refusal[1])
        return refusal is not None

    def _describe(self, path: list[str]) -> None:
        name = "/".join(path[2:4])
        if self._refused(name):
            return None
        repository = self.hub.repositories[name]
        if path[4:5] == ["tree"]:
            return self._json([_entry(*item) for item in repository.files.items()])
        files = [{"rfilename": file} for file in repository.files]
        return self._json({"id": name, "sha": repository.commit, "private": repository.private, "siblings": files})

    def _create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if wanted["organization"] != "me":
            error = f'You don\'t have the rights to create a model under the namespace "{wanted["organization"]}"'
            return self._json({"error": error}, 403)
        private = wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
        self.hub.repositories[name] = Repository(private=private)
        return self._json({"url": f"{self.hub.address}/{name}"})

    def _upload(self, item: dict) -> dict:
        href = f"{self.hub.address}/upload/{item['oid']}"
        return item if item["oid"] in self.hub.uploads else item | {"actions": {"upload": {"href": href}}}

    def _mode(self, repository: Repository, path: str) -> dict:
        large = path.endswith(".safetensors")
        content = repository.files.get(path)
        oid = None if content is None else sha256(content).hexdigest() if large else _git_hash(content)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _change(self, repository: Repository, key: str, value: dict) -> None:
        if key == "file":
            repository.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            repository.files[value["path"]] = self.hub.uploads[value["oid"]]
        elif key == "deletedFile":
            del repository.files[value["path"]]
        else:
            assert key == "header", key

    def _json(self, content: object, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes = b"", headers: dict | None = None, code: str = "") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _git_hash(content: bytes) -> str:
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    if not name.endswith(".safetensors"):
        return entry
    return entry | {"lfs": {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a server without repositories."""
    handler = type("HubHandler", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler.hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def reached_from_here(hub: Hub, home: Path) -> Iterator[None]:
    """Let the client library in this process speak with the server alone, logged in, with a cache of its own."""
    constants = huggingface_hub.constants
    with pytest.MonkeyPatch.context() as monkeypatch:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("no_proxy", "*")
        close_session()
        yield
    close_session()
