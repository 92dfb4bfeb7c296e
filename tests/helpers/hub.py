"""A stand-in for the Hugging Face Hub: repositories that can be created, written and read."""

import base64
import json
import re
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub
import pytest


class Hub(ThreadingHTTPServer):
    """Server of the part of the Hub's HTTP API that uploads and downloads of small files need.

    Attributes:
        repos: Files of each repository by commit, the latest last.
        requests: Methods and paths, in order.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit; return its hash."""
        commits = self.repos.setdefault(repo, {})
        before = list(commits.values())[-1] if commits else {}
        name = sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[name] = before | files
        return name

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit and its files; ``main`` is the latest."""
        commits = self.repos.get(repo, {})
        if revision == "main" and commits:
            revision = list(commits)[-1]
        return (revision, commits[revision]) if revision in commits else None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        self.server.requests.append(("POST", self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            given = json.loads(body)
            organisation = given.get("organization")
            name = f"{organisation}/{given['name']}" if organisation else given["name"]
            if name not in self.server.repos:
                self.server.commit(name, {})
            self.answer({"url": f"{self.server.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/\w+", path):
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif match := re.fullmatch(r"/api/models/(.+)/commit/\w+", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = self.server.commit(match[1], files)
            url = f"{self.server.url}/{match[1]}/commit/{name}"
            self.answer({"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({}, 404)

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        path = unquote(self.path.partition("?")[0])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            found = self.server.find(match[1], match[3] or "main")
            if found is None:
                code = "RevisionNotFound" if match[1] in self.server.repos else "RepoNotFound"
                return self.answer({"error": code}, 404, {"X-Error-Code": code})
            name, files = found
            if match[2] == "tree":
                return self.answer(
                    [
                        {"type": "file", "path": p, "size": len(b), "oid": sha1(b).hexdigest()}
                        for p, b in files.items()
                    ]
                )
            siblings = [{"rfilename": p} for p in files]
            return self.answer({"id": match[1], "sha": name, "siblings": siblings})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            found = self.server.find(match[1], match[2])
            if found and match[3] in found[1]:
                body = found[1][match[3]]
                headers = {"X-Repo-Commit": found[0], "ETag": f'"{sha1(body).hexdigest()}"'}
                return self.send(body, 200, headers)
            return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.answer({}, 404)

    do_HEAD = do_GET

    def answer(self, content, status: int = 200, headers: dict | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self.send(json.dumps(content).encode(), status, kind | (headers or {}))

    def send(self, body: bytes, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, for one test."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()
