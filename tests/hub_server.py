"""A small Hub on 127.0.0.1: create, look up, preupload, LFS and commit, as huggingface_hub's client calls them."""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "x" * 34


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])

    def tags(self) -> list[str]:
        card = self.files.get("README.md", b"").decode()
        return (yaml.safe_load(card.split("---\n")[1]) or {}).get("tags", []) if card.startswith("---\n") else []


@dataclass
class Hub:
    """Its state, what was asked of it, and the answers that a test has set beforehand."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by their sha256."""
    calls: Counter[str] = field(default_factory=Counter)
    failing: dict[str, list[int]] = field(default_factory=dict)
    """{call: statuses of the next answers, in order, before it works}."""
    says: str = "made to fail"
    """What those answers say."""
    expired: bool = False
    taken: set[str] = field(default_factory=set)
    """Names of repositories that this token may not see."""
    url: str = ""

    def add_dataset(self, name: str, files: dict[str, bytes]) -> None:
        """A new commit of a dataset, of these files."""
        repository = self.repositories.setdefault(name, Repository())
        repository.files = files
        repository.commits.append(hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest())


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_POST(self) -> None:
        self.answer("POST")

    def send(self, status: int, content: bytes | dict[str, Any] = b"", **headers: str) -> None:
        if isinstance(content, dict):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, method: str) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path == "api/agent-harnesses":  # what huggingface_hub asks for its user agent, at most once a day
            return self.send(404, {"error": "not here"})
        call, handle, arguments = self.route(method, path)
        self.hub.calls[call] += 1
        body = self.body() if method in ("PUT", "POST") else b""
        if statuses := self.hub.failing.get(call):
            return self.send(statuses.pop(0), {"error": self.hub.says})
        if call not in ("object", "yaml") and self.hub.expired:
            message = "Invalid credentials in Authorization header"
            return self.send(401, {"error": message}, X_Error_Message=message)
        if call in ("create", "preupload", "lfs", "commit") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        return handle(body, *arguments)

    def route(self, method: str, path: str) -> tuple[str, Any, tuple[str, ...]]:
        parts = path.split("/")
        name = "/".join(parts[2:4]) if parts[:2] == ["api", "models"] else "/".join(parts[:2])
        if method == "PUT":
            return "object", self.put_object, (parts[-1],)
        if path == "api/repos/create":
            return "create", self.create, ()
        if path == "api/validate-yaml":
            return "yaml", self.validate, ()
        if path.endswith(".git/info/lfs/objects/batch"):
            return "lfs", self.batch, ()
        if parts[0] == "api" and parts[4:5] == ["preupload"]:
            return "preupload", self.preupload, (name,)
        if parts[0] == "api" and parts[4:5] == ["commit"]:
            return "commit", self.commit, (name,)
        if parts[0] == "api" and parts[1] == "models":
            return "info", self.info, (name,)
        if parts[:2] == ["api", "datasets"]:
            return "dataset", self.dataset, ("/".join(parts[2:4]), parts[4:])
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            return "resolve", self.resolve, ("/".join(parts[1:3]), "/".join(parts[5:]))
        if parts[2:3] == ["resolve"]:
            return "resolve", self.resolve, (name, "/".join(parts[4:]))
        raise AssertionError(f"{method} {path}: no route of the Hub that this toolkit needs")

    def info(self, body: bytes, name: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            status = 404 if self.headers["Authorization"] else 401
            return self.send(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        told = {"id": name, "sha": repository.commits[-1], "private": repository.private, "tags": repository.tags()}
        self.send(200, told | {"siblings": [{"rfilename": file} for file in sorted(repository.files)]})

    def dataset(self, body: bytes, name: str, asked: list[str]) -> None:
        """What `datasets` asks for: the repository at a revision, its tree, and the files of some paths."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            for path, content in sorted(repository.files.items())
        ]
        if asked[:1] == ["tree"]:
            below, deep = "/".join([*asked[2:], ""]), "recursive=True" in self.path or "recursive=true" in self.path
            inside = [e for e in entries if str(e["path"]).startswith(below)]
            folders = {below + str(e["path"])[len(below) :].partition("/")[0] for e in inside}
            folders -= {str(e["path"]) for e in inside}
            shown = [e for e in inside if deep or "/" not in str(e["path"])[len(below) :]]
            shown += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)]
            return self.send(200, json.dumps(shown).encode())
        if asked[:1] == ["paths-info"]:
            said = body.decode()
            return self.send(200, json.dumps([e for e in entries if str(e["path"]) in said]).encode())
        told = {"id": name, "sha": repository.commits[-1], "private": False, "tags": []}
        self.send(200, told | {"siblings": [{"rfilename": file} for file in sorted(repository.files)]})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories or name in self.hub.taken:
            return self.send(409, {"error": "You already created this model repo"})
        repository = Repository(private=asked.get("visibility") == "private" or asked.get("private") is True)
        self.hub.repositories[name] = repository
        repository.files[".gitattributes"] = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self, body: bytes) -> None:
        card = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        problems = []
        for key in ("library_name", "tags", "pipeline_tag"):
            if key not in card:
                problems.append(f'"{key}" is missing')
        if "base_model" in card and card["base_model"].count("/") != 1:
            problems.append(f'"base_model" {card["base_model"]} must be a model id')
        for result in card.get("model-index", [{"results": []}])[0]["results"]:
            if not (result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]):
                problems.append('"model-index" is not valid')
        self.send(400 if problems else 200, {"errors": [{"message": p} for p in problems], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        files = []
        for file in json.loads(body)["files"]:
            lfs = file["path"].endswith(".safetensors")
            there = self.hub.repositories[name].files.get(file["path"])
            oid = None if there is None else sha256(there) if lfs else git_hash(there)
            mode = "lfs" if lfs else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send(200, {"files": files})

    def batch(self, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            told = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                told["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}
            objects.append(told)
        self.send(200, {"transfer": "basic", "objects": objects})

    def put_object(self, body: bytes, oid: str) -> None:
        assert self.headers["Authorization"] is None, "the token is not sent to the storage"
        if sha256(body) != oid:
            return self.send(400, {"error": "the object is not what was announced"})
        self.hub.objects[oid] = body
        self.send(200)

    def commit(self, body: bytes, name: str) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.files)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.commits.append(hashlib.sha1(body).hexdigest())
        oid = repository.commits[-1]
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def resolve(self, body: bytes, name: str, file: str) -> None:
        repository = self.hub.repositories[name]
        if file not in repository.files:
            return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content = repository.files[file]
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            return self.send(206, part, Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send(200, content, X_Repo_Commit=repository.commits[-1], ETag=f'"{git_hash(content)}"')


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
