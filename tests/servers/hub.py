"""A Hugging Face Hub on this machine: the HTTP routes that huggingface_hub, datasets, evaluate and transformers use.

    python tests/servers/hub.py --root FOLDER [--port PORT]

Clients set `HF_ENDPOINT` to the URL that is printed, `HF_HUB_DISABLE_XET=1`, and `HF_TOKEN` to one of `TOKENS`, before
they import anything. A repository is public, private or gated; a commit on an outdated parent is refused (412).
Everything is kept below the root folder and read again by the next server: `repos/` holds each repository's history
(`repo.json`) and the files of its main branch, `blobs/` the contents by digest.

`POST /_faults` with `{"match": REGEX, "status": 503, "times": 1, "skip": 0, "seconds": 0}` makes later requests whose
`METHOD /path` matches fail with that status, or lose their connection where `status` is null, after so many seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import fnmatch
import hashlib
import json
import posixpath
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


TOKENS = {"hf_write": "write", "hf_read": "read", "hf_stranger": "stranger"}
"""Role by token: `write` owns every repository, `read` may read private and gated ones, `stranger` neither."""
USER = "md"

_DATE = "2026-11-24T00:00:00.000Z"
_LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".arrow", ".pt", ".gguf", ".zip", ".gz", ".png")
_LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0", "other")
_TASKS = ("text-generation", "question-answering")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")
_SDKS = ("gradio", "docker", "static")
_KINDS = {"datasets": "dataset", "spaces": "space", "models": "model"}


class _Revision(StringConvertor):
    """A branch, tag or commit, or a reference such as `refs/convert/parquet`."""

    regex = "refs/[^/]+/[^/]+|[^/]+"


register_url_convertor("revision", _Revision())


class HubError(Exception):
    """A request that is answered with an error, as huggingface_hub reads it."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None, **body: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.commit, self.body = status, message, code, commit, body


@dataclass
class File:
    """A file of a commit: where its content is and what Git would call it."""

    sha256: str
    oid: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def entry(self, name: str, expand: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": self.oid, "size": self.size, "path": name}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return entry | ({"lastCommit": {"id": "0" * 40, "title": "commit", "date": _DATE}} if expand else {})


@dataclass
class Repo:
    """A repository: its commits, each a mapping of names to files, its branches and its tags."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    sdk: str | None = None
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    log: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, title: str, files: dict[str, File]) -> str:
        parent = self.branches.get(branch)
        content = [self.id, parent, title, sorted((name, file.oid) for name, file in files.items()), len(self.commits)]
        sha = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[sha], self.log[sha], self.branches[branch] = files, (parent, title), sha
        return sha

    def resolve(self, revision: str) -> tuple[str, dict[str, File]]:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, self.commits[sha]

    def history(self, revision: str) -> Iterator[tuple[str, str]]:
        """Commits from the newest to the oldest, each with its title."""
        sha: str | None = self.resolve(revision)[0]
        while sha:
            parent, title = self.log[sha]
            yield sha, title
            sha = parent


@dataclass
class Fault:
    """Makes `times` requests fail, after `skip` that pass."""

    match: str
    status: int | None = 503
    times: int = 1
    skip: int = 0
    seconds: float = 0.0


class Hub:
    """All repositories, kept in a folder."""

    def __init__(self, root: Path):
        self.root = root
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int | None]] = []
        self.failing: list[str] = []
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        for file in sorted(root.glob("repos/*/*/*/repo.json")):
            saved = json.loads(file.read_text())
            saved["commits"] = {
                sha: {name: File(**values) for name, values in files.items()}
                for sha, files in saved["commits"].items()
            }
            saved["log"] = {sha: tuple(entry) for sha, entry in saved["log"].items()}
            self.repos[saved["kind"], saved["id"]] = Repo(**saved)

    def folder(self, repo: Repo) -> Path:
        return self.root / "repos" / f"{repo.kind}s" / repo.id

    def save(self, repo: Repo) -> None:
        folder = self.folder(repo)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "repo.json").write_text(json.dumps(asdict(repo), indent=1))
        # The files of `main`, to be looked at
        shutil.rmtree(folder / "main", ignore_errors=True)
        for name, file in repo.resolve("main")[1].items():
            target = folder / "main" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(self.root / "blobs" / file.sha256)

    def add_blob(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        blob = self.root / "blobs" / sha256
        if not blob.exists():
            blob.write_bytes(content)
        file = File(sha256, "", len(content), lfs)
        in_git = file.pointer if lfs else content
        file.oid = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        return file

    def read_blob(self, sha256: str) -> bytes | None:
        blob = self.root / "blobs" / sha256
        return blob.read_bytes() if blob.exists() else None

    def find(self, kind: str, id: str, role: str | None) -> Repo:
        repo = self.repos.get((kind, id))
        if repo is None or (repo.private and role not in ("write", "read")):
            # As on the Hub: whoever is not logged in is not told whether there is such a repository
            raise HubError(404 if role else 401, "Repository not found", "RepoNotFound")
        return repo


def _role(request: Request) -> str | None:
    header = request.headers.get("authorization", "")
    if not header:
        return None
    role = TOKENS.get(header.removeprefix("Bearer ").strip())
    if role is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return role


def _writer(request: Request) -> None:
    role = _role(request)
    if role is None:
        raise HubError(401, "Invalid username or password.")
    if role != "write":
        raise HubError(403, "You don't have the rights to write to this repository")


def _metadata_errors(content: str, repo_type: str) -> list[str]:
    """Check the YAML of a card as the Hub does, in the fields that this project writes."""
    match = re.match(r"---\n(.*?)\n---(\n|$)", content, re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    lists = {"language", "license", "task_categories", "tags", "size_categories"}
    errors = [
        f'"{name}" must be a string or a list of strings'
        for name in lists & data.keys()
        if not all(isinstance(part, str) for part in (data[name] if isinstance(data[name], list) else [data[name]]))
    ]
    allowed = {"license": _LICENSES, "task_categories": _TASKS, "size_categories": _SIZES, "sdk": _SDKS}
    for name in allowed.keys() & data.keys():
        values = data[name] if isinstance(data[name], list) else [data[name]]
        errors += [f'"{name}" must be one of {allowed[name]}, not {v!r}' for v in values if v not in allowed[name]]
    if repo_type == "space":
        errors += [f'"{name}" is required' for name in ("title", "sdk") if name not in data]
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" must be at most 60 characters long')
    for name in ("configs", "dataset_info"):
        entries = data.get(name, [])
        entries = entries if isinstance(entries, list) else [entries]
        names = [entry.get("config_name", "default") for entry in entries]
        if len(set(names)) < len(names):
            errors.append(f'"{name}" has duplicate config names')
    if sum(bool(entry.get("default")) for entry in data.get("configs", [])) > 1:
        errors.append('only one of "configs" may be the default')
    return errors


def _directory(name: str, expand: bool) -> dict[str, Any]:
    entry = {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    return entry | ({"lastCommit": {"id": "0" * 40, "title": "commit", "date": _DATE}} if expand else {})


def _directories(files: dict[str, File]) -> set[str]:
    found = set()
    for name in files:
        while name := posixpath.dirname(name):
            found.add(name)
    return found


def _is_ignored(name: str, gitignore: str) -> bool:
    """The rules of `.gitignore` without negation and without `**`."""
    parts = name.split("/")
    rules = [line for line in gitignore.splitlines() if line.strip() and not line.startswith("#")]
    return any(
        fnmatch.fnmatch(part, rule.strip("/")) for rule in rules for part in (parts[:1] if rule[0] == "/" else parts)
    )


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "false").lower() in ("true", "1")


class Api:
    """The routes. `hub` is used by one request at a time: the server has one thread."""

    def __init__(self, hub: Hub):
        self.hub = hub

    def repo(self, request: Request) -> Repo:
        params = request.path_params
        kind = _KINDS.get(params.get("kind", "models"))
        if kind is None:
            raise HubError(404, f"There is no {request.url.path} here")
        return self.hub.find(kind, f"{params['owner']}/{params['name']}", _role(request))

    def url(self, request: Request, kind: str, id: str) -> str:
        return f"{request.base_url}{'' if kind == 'model' else kind + 's/'}{id}"

    # Account

    async def whoami(self, request: Request) -> Response:
        role = _role(request)
        if role is None:
            raise HubError(401, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return JSONResponse({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    async def validate_yaml(self, request: Request) -> Response:
        sent = await request.json()
        errors = [{"message": message} for message in _metadata_errors(sent["content"], sent["repoType"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    async def telemetry(self, request: Request) -> Response:
        return JSONResponse({})

    # Repositories

    async def create(self, request: Request) -> Response:
        _writer(request)
        body = await request.json()
        kind, id = body.get("type") or "model", f"{body.get('organization') or USER}/{body['name']}"
        if (kind, id) in self.hub.repos:
            raise HubError(409, "You already created this repo", url=self.url(request, kind, id))
        private = body.get("visibility") == "private" or body.get("private") is True
        repo = Repo(kind, id, private=private, sdk=body.get("sdk"))
        repo.commit("main", "initial commit", {})
        self.hub.repos[kind, id] = repo
        self.hub.save(repo)
        return JSONResponse({"url": self.url(request, kind, id), "name": id, "id": id})

    async def delete(self, request: Request) -> Response:
        _writer(request)
        body = await request.json()
        repo = self.hub.find(
            body.get("type") or "model", f"{body.get('organization') or USER}/{body['name']}", "write"
        )
        del self.hub.repos[repo.kind, repo.id]
        shutil.rmtree(self.hub.folder(repo), ignore_errors=True)
        return JSONResponse({})

    async def settings(self, request: Request) -> Response:
        _writer(request)
        repo, body = self.repo(request), await request.json()
        if "private" in body or "visibility" in body:
            repo.private = body.get("private") is True or body.get("visibility") == "private"
        if "gated" in body:
            repo.gated = bool(body["gated"])
        self.hub.save(repo)
        return JSONResponse({})

    async def info(self, request: Request) -> Response:
        repo = self.repo(request)
        sha, files = repo.resolve(request.path_params.get("revision", "main"))
        siblings = []
        for name, file in sorted(files.items()):
            sibling: dict[str, Any] = {"rfilename": name}
            if "blobs" in request.query_params:
                entry = file.entry(name, expand=False)
                sibling |= {"size": file.size, "blobId": file.oid}
                if "lfs" in entry:
                    sibling["lfs"] = entry["lfs"] | {"sha256": file.sha256}
            siblings.append(sibling)
        answer = {"_id": "0" * 24, "id": repo.id, "author": repo.id.split("/")[0], "sha": sha}
        answer |= {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
        answer |= {"downloads": 0, "likes": 0, "tags": [], "createdAt": _DATE, "lastModified": _DATE}
        return JSONResponse(answer | {"siblings": siblings} | ({"sdk": repo.sdk} if repo.sdk else {}))

    async def listing(self, request: Request) -> Response:
        kind, role = _KINDS[request.url.path.rpartition("/")[2]], _role(request)
        return JSONResponse(
            [
                {"_id": "0" * 24, "id": id, "private": repo.private, "tags": [], "downloads": 0, "likes": 0}
                | {"createdAt": _DATE, "lastModified": _DATE}
                for (of_kind, id), repo in sorted(self.hub.repos.items())
                if of_kind == kind and (not repo.private or role in ("write", "read"))
            ]
        )

    async def tree(self, request: Request) -> Response:
        _, files = self.repo(request).resolve(request.path_params["revision"])
        folder = request.path_params.get("file", "").strip("/")
        prefix = folder + "/" if folder else ""
        if prefix and not any(name.startswith(prefix) for name in files):
            raise HubError(404, f"{folder} does not exist on {request.path_params['revision']}", "EntryNotFound")
        expand, recursive = _flag(request, "expand"), _flag(request, "recursive")

        def is_shown(name: str) -> bool:
            return name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])

        shown = [_directory(name, expand) for name in sorted(_directories(files)) if is_shown(name)]
        shown += [file.entry(name, expand) for name, file in sorted(files.items()) if is_shown(name)]
        return JSONResponse(shown)

    async def paths_info(self, request: Request) -> Response:
        _, files = self.repo(request).resolve(request.path_params["revision"])
        if "json" in request.headers.get("content-type", ""):
            body = await request.json()
            names, expand = body["paths"], bool(body.get("expand"))
        else:
            form = await request.form()
            names, expand = form.getlist("paths"), str(form.get("expand", "false")).lower() == "true"
        names = [names] if isinstance(names, str) else names
        directories = _directories(files)
        return JSONResponse(
            [
                files[name].entry(name, expand) if name in files else _directory(name, expand)
                for name in names
                if name in files or name in directories
            ]
        )

    async def refs(self, request: Request) -> Response:
        repo = self.repo(request)

        def named(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        return JSONResponse(
            {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []}
        )

    async def commits(self, request: Request) -> Response:
        history = self.repo(request).history(request.path_params["revision"])
        return JSONResponse(
            [
                {"id": sha, "title": title, "message": "", "date": _DATE, "authors": [{"user": USER}]}
                for sha, title in history
            ]
        )

    async def branch(self, request: Request) -> Response:
        _writer(request)
        repo, name = self.repo(request), request.path_params["revision"]
        if request.method == "DELETE":
            repo.branches.pop(name, None)
        elif name in repo.branches:
            raise HubError(409, "Reference already exists")
        else:
            body = json.loads(await request.body() or b"{}")
            repo.branches[name] = repo.resolve(body.get("startingPoint") or "main")[0]
        self.hub.save(repo)
        return JSONResponse({})

    async def tag(self, request: Request) -> Response:
        _writer(request)
        repo, name = self.repo(request), request.path_params["revision"]
        if request.method == "DELETE":
            if repo.tags.pop(name, None) is None:
                raise HubError(404, f"Tag {name} does not exist", "RevisionNotFound")
        else:
            tag = (await request.json())["tag"]
            if tag in repo.tags:
                raise HubError(409, "Tag reference exists already")
            repo.tags[tag] = repo.resolve(name)[0]
        self.hub.save(repo)
        return JSONResponse({})

    # Uploading

    async def preupload(self, request: Request) -> Response:
        _writer(request)
        _, files = self.repo(request).resolve(request.path_params["revision"])
        answer, body = [], await request.json()
        hosted = self.hub.read_blob(files[".gitignore"].sha256).decode() if ".gitignore" in files else ""
        ignore = body.get("gitIgnore") or hosted
        for sent in body["files"]:
            name = sent["path"]
            is_binary = sent["size"] > 10 << 20 or b"\0" in base64.b64decode(sent["sample"])
            mode = "lfs" if name.endswith(_LFS_SUFFIXES) or is_binary else "regular"
            known = {"oid": files[name].etag} if name in files else {}
            answer.append({"path": name, "uploadMode": mode, "shouldIgnore": _is_ignored(name, ignore)} | known)
        return JSONResponse({"files": answer})

    async def lfs_batch(self, request: Request) -> Response:
        _writer(request)
        self.repo(request)
        objects = []
        for wanted in (await request.json())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if self.hub.read_blob(wanted["oid"]) is None:
                entry["actions"] = {
                    "upload": {"href": f"{request.base_url}_lfs/{wanted['oid']}"},
                    "verify": {"href": f"{request.base_url}_lfs/verify"},
                }
            objects.append(entry)
        body = {"transfer": "basic", "objects": objects}
        return JSONResponse(body, media_type="application/vnd.git-lfs+json")

    async def lfs_put(self, request: Request) -> Response:
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            raise HubError(400, "sha256 mismatch")
        self.hub.add_blob(content, lfs=True)
        return JSONResponse({})

    async def lfs_verify(self, request: Request) -> Response:
        wanted = await request.json()
        if len(self.hub.read_blob(wanted["oid"]) or b"") != wanted["size"]:
            raise HubError(404, "object missing")
        return JSONResponse({})

    async def commit(self, request: Request) -> Response:
        _writer(request)
        repo, branch = self.repo(request), request.path_params["revision"]
        head, files = repo.resolve(branch)
        files, title = dict(files), "commit"
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = self.hub.add_blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                content = self.hub.read_blob(value["oid"])
                if content is None:
                    raise HubError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = self.hub.add_blob(content, lfs=True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
            elif key == "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {name: file for name, file in files.items() if not name.startswith(prefix)}
        sha = repo.commit(branch, title, files)
        self.hub.save(repo)
        url = f"{self.url(request, repo.kind, repo.id)}/commit/{sha}"
        return JSONResponse({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    # Downloading

    async def file(self, request: Request) -> Response:
        repo = self.repo(request)
        sha, files = repo.resolve(request.path_params["revision"])
        if repo.gated and _role(request) not in ("write", "read"):
            raise HubError(403 if _role(request) else 401, f"Access to {repo.id} is restricted.", "GatedRepo")
        name = request.path_params["file"]
        if name not in files:
            # By the commit, clients remember that it has no such file
            raise HubError(404, "Entry not found", "EntryNotFound", commit=sha)
        file, content = files[name], self.hub.read_blob(files[name].sha256)
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
        status = 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
            low, high = int(match[1]), min(int(match[2] or file.size - 1), file.size - 1)
            if low >= file.size:
                return Response(status_code=416, headers={"Content-Range": f"bytes */{file.size}"})
            headers["Content-Range"] = f"bytes {low}-{high}/{file.size}"
            content, status = content[low : high + 1], 206
        return Response(content, status, headers, media_type="application/octet-stream")

    # For tests

    async def add_fault(self, request: Request) -> Response:
        self.hub.faults.append(Fault(**await request.json()))
        return JSONResponse({})

    async def seen(self, request: Request) -> Response:
        return JSONResponse(self.hub.requests)

    def routes(self) -> list[Route]:
        api, repo = "/api/{kind}/{owner}/{name}", "/{owner}/{name}"
        routes = [
            Route("/_faults", self.add_fault, methods=["POST"]),
            Route("/_requests", self.seen),
            Route("/api/whoami-v2", self.whoami),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/api/telemetry/{rest:path}", self.telemetry, methods=["GET", "HEAD"]),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/repos/delete", self.delete, methods=["DELETE"]),
            *(Route(f"/api/{kind}", self.listing, name=kind) for kind in _KINDS),
            Route(f"{api}/settings", self.settings, methods=["PUT"]),
            Route(f"{api}/revision/{{revision:path}}", self.info),
            Route(f"{api}/tree/{{revision:revision}}", self.tree),
            Route(f"{api}/tree/{{revision:revision}}/{{file:path}}", self.tree),
            Route(f"{api}/paths-info/{{revision:path}}", self.paths_info, methods=["POST"]),
            Route(f"{api}/refs", self.refs),
            Route(f"{api}/commits/{{revision:path}}", self.commits),
            Route(f"{api}/branch/{{revision:path}}", self.branch, methods=["POST", "DELETE"]),
            Route(f"{api}/tag/{{revision:path}}", self.tag, methods=["POST", "DELETE"]),
            Route(f"{api}/preupload/{{revision:path}}", self.preupload, methods=["POST"]),
            Route(f"{api}/commit/{{revision:path}}", self.commit, methods=["POST"]),
            Route(api, self.info),
            Route("/_lfs/verify", self.lfs_verify, methods=["POST"]),
            Route("/_lfs/{oid}", self.lfs_put, methods=["PUT"]),
        ]
        for prefix in ("/{kind}" + repo, repo):
            routes += [
                Route(f"{prefix}.git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
                Route(f"{prefix}/resolve/{{revision:revision}}/{{file:path}}", self.file, methods=["GET", "HEAD"]),
                Route(f"{prefix}/raw/{{revision:revision}}/{{file:path}}", self.file, methods=["GET", "HEAD"]),
            ]
        return routes


class Watch:
    """Answers errors in the Hub's form, makes requests fail on demand, and records them."""

    def __init__(self, app: Starlette, hub: Hub):
        self.app, self.hub = app, hub

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        line = f"{scope['method']} {scope['path']}"
        status: int | None = None

        async def watched(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        fault = self._fault(line)
        if fault is not None:
            self.hub.failing.append(line)
            until = time.monotonic() + fault.seconds
            while fault in self.hub.faults and time.monotonic() < until:  # `hub.faults.clear()` ends the waiting
                await asyncio.sleep(0.02)
        if fault is None:
            await self.app(scope, receive, watched)
        elif fault.status is not None:
            await JSONResponse({"error": "injected fault"}, fault.status)(scope, receive, watched)
        # Without a word uvicorn closes the connection
        self.hub.requests.append((scope["method"], scope["path"], status))

    def _fault(self, line: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and re.search(fault.match, line):
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.times -= 1
                return fault
        return None


async def _hub_error(request: Request, error: HubError) -> Response:
    headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
    headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
    return JSONResponse({"error": error.message} | error.body, error.status, headers)


def make_app(hub: Hub) -> Watch:
    return Watch(Starlette(routes=Api(hub).routes(), exception_handlers={HubError: _hub_error}), hub)


@contextmanager
def running_hub(root: Path) -> Iterator[tuple[str, Hub]]:
    """The Hub in a thread of this process: yields its URL and the [`Hub`]."""
    hub = Hub(root)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(hub), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", hub
        finally:
            server.should_exit = True
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", args.port)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(make_app(Hub(args.root)), log_level="error", lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
