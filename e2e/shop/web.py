#!/usr/bin/env python3
"""The shop's `web` in Python, with nothing but its standard library: the same as src/web.rs.

It knows nothing of a mesh: it calls http://reviews:9080.
"""

import argparse
import http.client
import json
import pathlib
import signal
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = pathlib.Path(__file__).with_name("page.html")
PASSED_ON = ("end-user", "cookie", "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid",
             "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags")


class Reviews:
    """A client that keeps one connection for each thread."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.kept = threading.local()

    def get(self, path, headers):
        connection = getattr(self.kept, "connection", None)
        if connection is None:
            connection = self.kept.connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            self.kept.connection = None
            raise


def handler(reviews, hop):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one segment.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_GET(self):
            if self.path == "/healthz":
                return self.reply(200, "text/plain", b"ok\n")
            if self.path == "/":
                return self.reply(200, "text/html; charset=utf-8", PAGE.read_bytes())
            product = self.path.removeprefix("/api/reviews/")
            if not product.isdigit() or product == self.path:
                return self.json(404, {"error": "there is only / and /api/reviews/1", "hops": [hop]})
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            try:
                status, body = reviews.get(f"/reviews/{product}", headers)
            except (OSError, http.client.HTTPException) as error:
                return self.json(502, {"error": f"cannot reach reviews: {error}", "hops": [hop]})
            try:
                value = json.loads(body)
                value["hops"] = [hop] + value.get("hops", [])
            except (ValueError, TypeError, AttributeError):
                # Not from the application: from something on the way.
                value = {"error": body.decode(errors="replace").strip(), "hops": [hop]}
            return self.json(status, value)

        def json(self, status, value):
            self.reply(status, "application/json", json.dumps(value).encode() + b"\n")

        def reply(self, status, kind, body):
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    parser = argparse.ArgumentParser(description="The shop's web, in Python")
    parser.add_argument("--listen", default="0.0.0.0:9080")
    parser.add_argument("--version", default="v1")
    parser.add_argument("--reviews", default="http://reviews:9080")
    args = parser.parse_args()
    host, port = args.listen.rsplit(":", 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server((host, int(port)), handler(Reviews(args.reviews), f"web {args.version}"))
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
