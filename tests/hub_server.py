"""A Hub in memory on loopback: enough of its HTTP interface for the real `huggingface_hub` client.

Models, data sets and Spaces with their commits, branches and tags; small files travel in the
commit, large ones by LFS. Downloads of large files are redirected to another host name of this
machine, as the Hub's are, so that clients read the headers of the redirect.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "t" * 34
USER = "user"
LFS_ENDINGS = (".safetensors", ".parquet", ".bin")
LFS_SIZE = 1_000_000
KINDS = {"": "model", "datasets/": "dataset", "spaces/": "space"}  # by the begin of an address
SPACE_SDKS = ("gradio", "docker", "static")
NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}")

Files = dict[str, tuple[bytes, bool]]  # path -> (content, whether it is an LFS file)


@dataclass
class Repository:
    """Commits (id -> all files of that state), and what branches and tags point to."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """Return the id of the commit that a branch, a tag or an id names."""
        known = self.branches.get(revision) or self.tags.get(revision)
        return known or (revision if revision in self.commits else None)

    def commit(self, branch: str, files: Files) -> str:
        """Add a commit to a branch and return its id."""
        number = len(self.commits)
        name = hashlib.sha1(f"{number} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return path -> content of a revision."""
        return {
            path: content for path, (content, _) in self.commits[self.resolve(revision)].items()
        }


@dataclass
class Hub:
    """What is stored, who may write, and the faults that a test asked for."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # sha256 -> content of an LFS file
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)  # everything that clients sent
    drop_uploads: int = 0  # how many LFS uploads lose their connection half-way; -1: all
    drop_commits: int = 0  # how many commits lose their connection; -1: all
    refused_name: str | None = None  # a repository that nobody may create
    read_only: bool = False  # the token may not write

    def model(self, name: str) -> Repository:
        """Return a model repository."""
        return self.repositories["model", name]

    def dataset(self, name: str) -> Repository:
        """Return a data set repository."""
        return self.repositories["dataset", name]

    def space(self, name: str) -> Repository:
        """Return a Space's repository."""
        return self.repositories["space", name]

    def all_contents(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of every file of every commit."""
        for (_, name), repository in self.repositories.items():
            for commit in repository.commits.values():
                for path, (content, _) in commit.items():
                    yield f"{name}/{path}", content

    def takes_fault(self, name: str) -> bool:
        """Whether this request must fail; a fault that is not for ever is counted down."""
        left = getattr(self, name)
        if left > 0:
            setattr(self, name, left - 1)
        return bool(left)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a Hub on a free port for as long as the body runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(Exception):
    """Ends a request early with a status and the Hub's own error headers."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    """One request: find its route, check the token, answer JSON or bytes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body after its headers would wait 40 ms
    hub: Hub

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/(model|dataset|space)s/(.+?)/preupload/([^/]+)", "preupload"),
        ("POST", r"/api/(model|dataset|space)s/(.+?)/commit/([^/]+)", "commit"),
        ("GET", r"/api/(model|dataset|space)s/(.+?)/tree/([^/]+)(?:/(.*))?", "tree"),
        ("POST", r"/api/(model|dataset|space)s/(.+?)/paths-info/([^/]+)", "paths_info"),
        ("GET", r"/api/(model|dataset|space)s/(.+?)/refs", "refs"),
        ("POST", r"/api/(model|dataset|space)s/(.+?)/branch/([^/]+)", "branch"),
        ("POST", r"/api/(model|dataset|space)s/(.+?)/tag/([^/]+)", "tag"),
        ("DELETE", r"/api/(model|dataset|space)s/(.+?)/tag/([^/]+)", "delete_tag"),
        ("GET", r"/api/(model|dataset|space)s/(.+?)/revision/([^/]+)", "info"),
        ("GET", r"/api/(model|dataset|space)s/([^/]+/[^/]+)", "info"),
        ("POST", r"/(datasets/|spaces/)?(.+?)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs-upload/([0-9a-f]{64})", "lfs_upload"),
        ("POST", r"/lfs-verify/([0-9a-f]{64})", "lfs_verify"),
        ("GET", r"/lfs-download/([0-9a-f]{64})", "lfs_download"),
        ("GET", r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "download"),
    )

    def do_GET(self) -> None:
        """Answer a GET, and a HEAD, a PUT, a POST or a DELETE, by the table of routes."""
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        method = "GET" if self.command == "HEAD" else self.command
        self.hub.requests.append(f"{self.command} {parts.path}")
        self.has_read_body = False
        try:
            for wanted, pattern, name in self.ROUTES:
                found = re.fullmatch(pattern, parts.path)
                if found and wanted == method:
                    getattr(self, f"on_{name}")(*(unquote(g) if g else "" for g in found.groups()))
                    return
            raise _Answer(404, "no such page")
        except _Answer as answer:
            self.body()
            headers = {"X-Error-Message": answer.message}
            headers |= {"X-Error-Code": answer.code} if answer.code else {}
            self.send_json({"error": answer.message}, answer.status, headers)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the tests read `hub.requests`."""

    # --- Reading and answering ------------------------------------------------------------------

    def body(self) -> bytes:
        """Return the request's body, which is read once."""
        if self.has_read_body:
            return b""
        self.has_read_body = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            content = b"".join(chunks)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.bodies.append(content)
        return content

    def json(self) -> dict[str, Any]:
        """Return the request's body as JSON."""
        return json.loads(self.body() or b"{}")

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        """Answer; a HEAD gets the headers alone."""
        self.body()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with JSON."""
        self.send(
            json.dumps(content).encode(),
            status,
            {"Content-Type": "application/json"} | (headers or {}),
        )

    def drop_connection(self) -> None:
        """Read half of the body, then reset the connection as a lost network does."""
        self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
        self.has_read_body = True
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.close()

    # --- Who and which --------------------------------------------------------------------------

    def is_user(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def require_user(self, name: str = f"{USER}/") -> None:
        if not self.is_user():
            raise _Answer(401, "Invalid credentials in Authorization header")
        if not name.startswith(f"{USER}/") or self.hub.read_only:
            raise _Answer(403, f"You don't have the rights to write to {name}")

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """Return a repository; a private one is hidden from strangers."""
        if write:
            self.require_user(name)
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self.is_user()):
            raise _Answer(
                401 if not self.is_user() else 404, "Repository not found", "RepoNotFound"
            )
        return found

    def commit_id(self, repository: Repository, revision: str) -> str:
        found = repository.resolve(revision)
        if found is None:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # --- Routes ---------------------------------------------------------------------------------

    def on_whoami(self) -> None:
        if not self.is_user():
            raise _Answer(401, "Invalid credentials in Authorization header")
        self.send_json({"type": "user", "name": USER, "orgs": [], "auth": {}})

    def on_create(self) -> None:
        wanted = self.json()
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        kind = wanted.get("type") or "model"
        self.require_user(name)
        if not NAME.fullmatch(wanted["name"]) or name == self.hub.refused_name:
            raise _Answer(400, f"Invalid name: {wanted['name']}")
        if kind == "space" and wanted.get("sdk") not in SPACE_SDKS:
            raise _Answer(400, f"sdk must be one of {', '.join(SPACE_SDKS)}")
        url = f"{self.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        if (kind, name) in self.hub.repositories:
            self.send_json({"error": "You already created this repo", "url": url}, 409)
            return
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repository = self.hub.repositories[kind, name] = Repository(is_private)
        repository.commit("main", {".gitattributes": (b"*.safetensors filter=lfs\n", False)})
        self.send_json({"url": url, "name": name, "id": name})

    def on_validate_yaml(self) -> None:
        """Check a card's metadata as far as this project fills it in."""
        sent = self.json()
        content = sent["content"]
        errors = []
        try:
            data = yaml.safe_load(content.split("---\n")[1]) if content.startswith("---") else None
            if not isinstance(data, dict):
                errors.append("no metadata")
            elif not str(data.get("license", "")).strip():
                errors.append('"license" is required here')
            elif sent.get("repoType") == "space" and data.get("sdk") not in SPACE_SDKS:
                errors.append('"sdk" is required for a Space')
        except yaml.YAMLError as error:
            errors.append(str(error))
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.send_json(answer, 400 if errors else 200)

    def on_preupload(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name, write=True)
        there = repository.commits[self.commit_id(repository, revision)]
        files = []
        for file in self.json()["files"]:
            path = file["path"]
            is_lfs = path.endswith(LFS_ENDINGS) or file["size"] > LFS_SIZE
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if is_lfs else "regular",
                    "shouldIgnore": False,
                    "oid": _object_id(*there[path]) if path in there else None,
                }
            )
        self.send_json({"files": files})

    def on_commit(self, kind: str, name: str, revision: str) -> None:
        if self.hub.takes_fault("drop_commits"):
            self.drop_connection()
            return
        repository = self.repository(kind, name, write=True)
        files = dict(repository.commits[self.commit_id(repository, revision)])
        for line in self.body().splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    files[value["path"]] = (base64.b64decode(value["content"]), False)
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise _Answer(400, f"LFS object {value['oid']} was never uploaded")
                    files[value["path"]] = (self.hub.objects[value["oid"]], True)
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise _Answer(400, f"{value['path']} is not there to be deleted")
        new = repository.commit(revision, files)
        self.send_json(
            {
                "success": True,
                "commitOid": new,
                "commitUrl": f"{self.hub.url}/{name}/commit/{new}",
                "pullRequestUrl": None,
            }
        )

    def on_tree(self, kind: str, name: str, revision: str, folder: str) -> None:
        repository = self.repository(kind, name)
        files = repository.commits[self.commit_id(repository, revision)]
        begin = f"{folder}/" if folder else ""
        self.send_json([_entry(path, *file) for path, file in sorted(files.items())
                        if path.startswith(begin)])  # fmt: skip

    def on_paths_info(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name)
        files = repository.commits[self.commit_id(repository, revision)]
        body = self.body().decode()
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body).get("paths", [])
        self.send_json([_entry(path, *files[path]) for path in paths if path in files])

    def on_refs(self, kind: str, name: str) -> None:
        repository = self.repository(kind, name)

        def listed(refs: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [
                {"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": commit}
                for ref, commit in refs.items()
            ]

        branches, tags = listed(repository.branches, "heads"), listed(repository.tags, "tags")
        self.send_json({"branches": branches, "tags": tags, "converts": []})

    def on_branch(self, kind: str, name: str, branch: str) -> None:
        repository = self.repository(kind, name, write=True)
        if branch in repository.branches:
            raise _Answer(409, "Reference already exists")
        start = self.json().get("startingPoint", "main")
        repository.branches[branch] = self.commit_id(repository, start)
        self.send_json({})

    def on_tag(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name, write=True)
        tag = self.json()["tag"]
        if tag in repository.tags:
            raise _Answer(409, "Tag already exists")
        repository.tags[tag] = self.commit_id(repository, revision)
        self.send_json({})

    def on_delete_tag(self, kind: str, name: str, tag: str) -> None:
        repository = self.repository(kind, name, write=True)
        if repository.tags.pop(tag, None) is None:
            raise _Answer(404, f"Invalid rev id: {tag}", "RevisionNotFound")
        self.send_json({})

    def on_info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self.repository(kind, name)
        commit = self.commit_id(repository, revision)
        self.send_json(
            {
                "id": name,
                "sha": commit,
                "private": repository.private,
                "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit])],
                "tags": [],
            }
        )

    def on_lfs_batch(self, kind: str, name: str) -> None:
        self.repository(KINDS[kind], name, write=True)
        objects = []
        for wanted in self.json()["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs-upload/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify/{wanted['oid']}"},
                }
            objects.append(entry)
        self.send_json({"transfer": "basic", "objects": objects})

    def on_lfs_upload(self, oid: str) -> None:
        if self.hub.takes_fault("drop_uploads"):
            self.drop_connection()
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Answer(400, "the content is not what its name says")
        self.hub.objects[oid] = content
        self.send(b"", 200, {})

    def on_lfs_verify(self, oid: str) -> None:
        self.require_user()
        if len(self.hub.objects.get(oid, b"")) != self.json()["size"]:
            raise _Answer(404, "Object not found")
        self.send_json({})

    def on_lfs_download(self, oid: str) -> None:
        self.send_file(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def on_download(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.repository(KINDS[kind], name)
        commit = self.commit_id(repository, revision)
        headers = {"X-Repo-Commit": commit}
        if path not in repository.commits[commit]:
            message = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.send_json({"error": "Entry not found"}, 404, headers | message)
            return
        content, is_lfs = repository.commits[commit][path]
        if not is_lfs:
            self.send_file(content, headers | {"ETag": f'"{_blob_id(content)}"'})
            return
        oid = hashlib.sha256(content).hexdigest()
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self.send(b"", 302, headers | {"Location": f"{elsewhere}/lfs-download/{oid}"})

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """Answer with a file, or with the part of it that a `Range` asks for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.send(content, 200, headers)
            return
        begin, end = int(asked[1]), int(asked[2] or len(content) - 1)
        part = content[begin : end + 1]
        span = f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"
        self.send(part, 206, headers | {"Content-Range": span})


def _blob_id(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _object_id(content: bytes, is_lfs: bool) -> str:
    """Return the name by which a client knows that a file is there already."""
    return hashlib.sha256(content).hexdigest() if is_lfs else _blob_id(content)


def _entry(path: str, content: bytes, is_lfs: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": _blob_id(content),
    }
    if is_lfs:
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry
