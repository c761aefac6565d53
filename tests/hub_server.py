"""A small model hub on this machine, speaking what the hubs' own clients need, with faults.

Hugging Face: `/api/models/REPO/revision/REV`, `/REPO/resolve/REV/PATH`, which redirects to a CDN.
ModelScope: `/api/v1/models/REPO/repo/files` and `/api/v1/models/REPO/repo?FilePath=`.
"""

import functools
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `repos`: repository name to {path: bytes}.

    Attributes (set them for trouble):
        cut_after: bytes after which a connection breaks, for the next `n_cuts` answers.
        corrupt: flip a byte of what the CDN sends.
        status: answer every request for a file with this status, for the next `n_status` answers.
        refuse: answer every request for a file's place with this status.
        stall_after: bytes after which a connection falls silent.
        shift: answer with a range that begins this many bytes later than asked for.
        is_page: answer with a web page.
        token: only requests with this token are let in.
        has_ranges: whether the CDN knows `Range`.
        pause: seconds between blocks of 64 KiB.
    """

    def __init__(self, repos):
        self.repos = repos
        self.cut_after = None
        self.n_cuts = 1 << 30
        self.corrupt = False
        self.status = None
        self.n_status = 1 << 30
        self.refuse = None
        self.stall_after = None
        self.shift = 0
        self.is_page = False
        self.token = None
        self.has_ranges = True
        self.pause = 0.0
        self.sent = Counter()  # bytes by path
        self.requests = []  # (method, path, headers)
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def take(self, name):
        """Whether a fault counted by `name` still happens."""
        with self.lock:
            left = getattr(self, name)
            setattr(self, name, max(left - 1, 0))
            return left > 0


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients that break off are what is tested; no need to print them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        url = urlsplit(self.path)
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, dict(self.headers)))
        is_cdn = parts[0] == "cdn"
        if self.hub.token and not is_cdn:
            given = self.headers.get("Authorization", "")
            if given != f"Bearer {self.hub.token}":
                return self.send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if is_cdn:
            return self.send_file("/".join(parts[1:3]), "/".join(parts[3:]))
        if parts[:2] == ["api", "v1"]:
            return self.modelscope(parts, parse_qs(url.query))
        if parts[:2] == ["api", "models"]:
            return self.listing("/".join(parts[2:4]))
        if len(parts) > 4 and parts[2] == "resolve":
            return self.resolve("/".join(parts[:2]), "/".join(parts[4:]))
        return self.send(404, b"{}")

    def listing(self, repo):
        if repo not in self.hub.repos:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        siblings = []
        for path, data in self.hub.repos[repo].items():
            entry = {"rfilename": path, "size": len(data), "blobId": _git_sha1(data)}
            if len(data) > 10_000:
                digest = _sha256(data)
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False}
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, repo, path):
        data = self.hub.repos.get(repo, {}).get(path)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.hub.refuse:
            return self.send(self.hub.refuse, b"")
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{_git_sha1(data)}"',
            "X-Linked-Etag": f'"{_sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{repo}/{path}",
        }
        return self.send(302, b"", headers)

    def modelscope(self, parts, query):
        repo = "/".join(parts[3:5])
        if repo not in self.hub.repos:
            return self.send(404, json.dumps({"Code": 404, "Message": "no such model"}).encode())
        if parts[5:] == ["repo"]:
            return self.send_file(repo, query["FilePath"][0])
        files = [
            {"Path": path, "Name": path, "Size": len(data), "Type": "blob",
             "Sha256": _sha256(data)}
            for path, data in self.hub.repos[repo].items()
        ]  # fmt: skip
        body = {"Code": 200, "Data": {"Files": files}, "Success": True}
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_file(self, repo, path):
        hub, data = self.hub, self.hub.repos[repo][path]
        if hub.status and hub.take("n_status"):
            return self.send(hub.status, b"", {"Retry-After": "0"})
        if hub.is_page:
            return self.send(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
        wanted = self.headers.get("Range")
        start, end, total = 0, len(data), len(data)
        if wanted and hub.has_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or total - 1) + 1, total)
            start = min(start + hub.shift, end)
        body = memoryview(data)[start:end]
        if hub.corrupt and body:
            body = bytearray(body)
            body[len(body) // 2] ^= 1
        partial = bool(wanted) and hub.has_ranges
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(body)))
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        self.end_headers()
        cut = len(body)
        if hub.cut_after is not None and len(body) > hub.cut_after and hub.take("n_cuts"):
            cut = hub.cut_after
        try:
            for at in range(0, cut, 65536):
                block = body[at : min(at + 65536, cut)]
                self.wfile.write(block)
                with hub.lock:
                    hub.sent[path] += len(block)
                time.sleep(hub.pause)
                if hub.stall_after is not None and at + 65536 >= hub.stall_after:
                    time.sleep(30)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut < len(body):
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        return None

    def send(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@functools.cache
def _sha256(data):
    return hashlib.sha256(data).hexdigest()


@functools.cache
def _git_sha1(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
