"""
A Hugging Face Hub on this machine, in memory: the endpoints that ``huggingface_hub`` calls to publish and to load models.

Written after the client's sources. It checks what the client sends (tokens, rights, sizes, hashes, metadata), records every
request, and fails on demand.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LICENSES = {"mit", "apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "gpl-3.0", "other", "unknown"}
LARGE = (".zip", ".mp4", ".npz", ".pkl", ".png")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repo:
    """Branches point to commits, commits hold whole trees; one commit exists from the start, as on the real Hub."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        text = json.dumps([branch, message, len(self.commits), {name: _oid(content) for name, content in files.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]

    def has(self, revision: str) -> bool:
        return revision in self.branches or revision in self.commits


class Hub:
    """
    The server.

    :param large_files: "lfs" to have large files sent by the LFS protocol, "regular" to have them inside the commit
    """

    def __init__(self, large_files: str = "lfs") -> None:
        self.large_files = large_files
        self.tokens = {"hf_me": "me"}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.failures: list[tuple[str, re.Pattern[str], int]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def fail(self, method: str, pattern: str, status: int) -> None:
        """Answer matching requests with an error; status 0 cuts the connection."""
        self.failures.append((method, re.compile(pattern), status))

    def seen(self, method: str, pattern: str) -> Any:
        """The requests of that method whose path matches."""
        return [path for verb, path in self.requests if verb == method and re.search(pattern, path)]

    def __enter__(self) -> "Hub":
        self.thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, body: bytes = b"", **headers: Any) -> None:
        self.status, self.body, self.headers = status, body, headers


def _json(status: int, content: dict[str, Any] | list[dict[str, Any]], **headers: Any) -> "_Answer":
    return _Answer(status, json.dumps(content).encode(), content_type="application/json", **headers)


def _error(status: int, message: str, code: str | None = None) -> "_Answer":
    headers: dict[str, Any] = {"x_error_message": message} | ({"x_error_code": code} if code else {})
    return _json(status, {"error": message}, **headers)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = parts.path, parse_qs(parts.query)
        self.hub.requests.append((self.command, self.route))
        self.content = self._read()
        for method, pattern, status in self.hub.failures:
            if method == self.command and pattern.search(self.route):
                if status == 0:
                    self.close_connection = True
                    return
                return self._send(_error(status, "failure on purpose"))
        try:
            for methods, route, action in _ROUTES:
                match = re.fullmatch(route, self.route)
                if match and self.command in methods.split("|"):
                    action(self, **{key: unquote(value) for key, value in match.groupdict().items() if value is not None})
            raise _error(404, f"the loopback hub knows no {self.command} {self.route}")
        except _Answer as answer:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, answer: "_Answer") -> None:
        self.send_response(answer.status)
        length = answer.headers.pop("content_length", len(answer.body))
        for name, value in answer.headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    # -- users and rights

    def user(self, required: bool = True) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise _error(401, "Invalid user token.")
        if required and not token:
            raise _error(401, "Invalid username or password.")
        return self.hub.tokens.get(token)

    def readable(self, repo: str) -> Repo:
        user, found = self.user(required=False), self.hub.repos.get(repo)
        if found is None or (found.private and user != repo.split("/")[0]):
            # The real Hub answers 401 with this code to anonymous requests, whether the repository exists or not.
            raise _error(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def writable(self, repo: str) -> Repo:
        if self.user() != repo.split("/")[0]:
            raise _error(403, "You don't have the rights")
        return self.readable(repo)

    def at(self, repo: str, revision: str) -> tuple[dict[str, bytes], str]:
        found = self.readable(repo)
        if not found.has(revision):
            raise _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found.files(revision), found.branches.get(revision, revision)

    # -- endpoints

    def whoami(self) -> None:
        raise _json(200, {"type": "user", "name": self.user(), "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        body = json.loads(self.content)
        owner = body.get("organization") or self.user()
        repo = f"{owner}/{body['name']}"
        if owner != self.user():
            raise _error(403, "You don't have the rights to create a model under this namespace")
        url = f"{self.hub.url}/{repo}"
        if repo in self.hub.repos:
            raise _json(409, {"error": "You already created this model repo", "url": url})
        private = body.get("private") is True or body.get("visibility") == "private"
        self.hub.repos[repo] = new = Repo(private)
        new.commit("main", {".gitattributes": b"*.zip filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        raise _json(200, {"url": url, "id": repo})

    def delete(self) -> None:
        body = json.loads(self.content)
        repo = f"{body.get('organization') or self.user()}/{body['name']}"
        self.writable(repo)
        del self.hub.repos[repo]
        raise _json(200, {})

    def info(self, repo: str, revision: str = "main") -> None:
        files, sha = self.at(repo, revision)
        card = files.get("README.md", b"").decode()
        head = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        private = self.hub.repos[repo].private
        tags = head.get("tags", [])
        raise _json(
            200,
            {
                "id": repo,
                "modelId": repo,
                "sha": sha,
                "private": private,
                "siblings": siblings,
                "tags": tags,
                "cardData": head,
            },
        )

    def tree(self, repo: str, revision: str) -> None:
        files, _ = self.at(repo, revision)
        raise _json(
            200, [{"type": "file", "path": name, "oid": _oid(data), "size": len(data)} for name, data in files.items()]
        )

    def validate_yaml(self) -> None:
        content = json.loads(self.content)["content"]
        errors = []
        try:
            head = yaml.safe_load(content.split("---")[1])
            if head.get("license") not in LICENSES:
                errors.append({"message": f'"license" must be one of {sorted(LICENSES)}'})
            for entry in head.get("model-index", []):
                for result in entry["results"]:
                    assert result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                    assert all("value" in metric and metric["type"] for metric in result["metrics"])
        except Exception as error:
            errors.append({"message": f"{type(error).__name__}: {error}"})
        raise _json(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        self.writable(repo)
        files, _ = self.at(repo, revision)
        modes = []
        for entry in json.loads(self.content)["files"]:
            large = self.hub.large_files == "lfs" and entry["path"].endswith(LARGE)
            known = files.get(entry["path"])
            oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _oid(known)
            modes.append(
                {"path": entry["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        raise _json(200, {"files": modes})

    def lfs_batch(self, repo: str) -> None:
        self.writable(repo)
        objects = []
        for entry in json.loads(self.content)["objects"]:
            item = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:
                actions = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
                actions["verify"] = {"href": f"{self.hub.url}/lfs-verify"}
                item["actions"] = actions
            objects.append(item)
        raise _json(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise _error(400, "content does not match its oid")
        self.hub.objects[oid] = self.content
        raise _Answer(200)

    def lfs_verify(self) -> None:
        body = json.loads(self.content)
        if len(self.hub.objects.get(body["oid"], b"")) != body["size"]:
            raise _error(404, "object not found or of another size")
        raise _json(200, {})

    def branch(self, repo: Any, branch: str) -> None:
        found = self.writable(repo)
        if branch in found.branches:
            raise _error(409, "Reference already exists")
        found.branches[branch] = found.branches["main"]
        raise _json(200, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self.writable(repo)
        if revision not in found.branches:
            raise _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, message = dict(found.files(revision)), ""
        for line in self.content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _error(400, f"LFS pointer of {value['path']} points to nothing")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(revision, files, message)
        raise _json(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        files, sha = self.at(repo, revision)
        if path not in files:
            raise _error(404, "Entry not found", "EntryNotFound")
        content = files[path]
        headers: dict[str, Any] = {"x_repo_commit": sha, "etag": f'"{_oid(files[path])}"', "accept_ranges": "bytes"}
        if self.command == "HEAD":
            raise _Answer(200, content_length=len(content), **headers)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            part = content[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
            raise _Answer(
                206, part, content_range=f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}", **headers
            )
        raise _Answer(200, content, **headers)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/.*)?", _Handler.tree),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/models/{REPO}", _Handler.info),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", _Handler.lfs_put),
    ("POST", r"/lfs-verify", _Handler.lfs_verify),
    ("GET|HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
