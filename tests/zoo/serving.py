"""A small web server for downloads: with ranges or without, cutting connections, and remembering what it was asked."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Site:
    """What is served, and how.

    Attributes:
        files: path -> bytes.
        ranges: whether a request for the rest of a file is understood.
        etag: what the files are called, or None.
        cuts: of each further answer, after how many bytes the connection breaks.
        status: answered instead of a file, or None.
        seconds: before each answer.
        then: calls to make before each further answer, which change what is served.
        shift: by how many bytes the rest of a file begins too early.
        short: by how many bytes a rest ends too early, and says so.
        renamed: what the server calls a rest, where that is not `etag`; it does not look at If-Range then.
        length: whether the answer says how long it is.
        asked: (path, Range, If-Range) of every request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges, self.etag, self.cuts, self.status, self.seconds = True, '"one"', [], None, 0.0
        self.shift, self.then = 0, []
        self.short, self.renamed, self.length = 0, None, True
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.url = ""

    @contextmanager
    def served(self) -> Iterator[Site]:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                wanted, same = self.headers.get("Range"), self.headers.get("If-Range")
                site.asked.append((self.path, wanted, same))
                time.sleep(site.seconds)
                if site.then:
                    site.then.pop(0)()
                content = site.files.get(self.path)
                if site.status or content is None:
                    self.send_error(site.status or 404)
                    return
                start = 0
                if wanted and site.ranges and (site.renamed or same in (None, site.etag)):
                    start = int(wanted.removeprefix("bytes=").removesuffix("-")) - site.shift
                if start >= len(content) > 0:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                rest = content[start : len(content) - site.short if start else None]
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{start + len(rest) - 1}/{len(content)}")
                if site.etag:
                    self.send_header("ETag", (start and site.renamed) or site.etag)
                if site.length:
                    self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                if site.cuts:
                    rest = rest[: site.cuts.pop(0)]
                    self.close_connection = True
                self.wfile.write(rest)

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
            threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
            self.url = f"http://127.0.0.1:{running.server_port}"
            yield self
            running.shutdown()
