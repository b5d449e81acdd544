"""An HTTP server that fails: slowly, at once, or the first time. `/hits` says how often a path was asked for."""

import sys
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

hits = Counter()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith("/hits"):
            return self.say(200, str(hits[self.path[len("/hits"):]]))
        hits[self.path] += 1
        if self.path.startswith("/slow"):
            time.sleep(6)
        if self.path.startswith("/dead"):
            self.close_connection = True
            return None
        first = hits[self.path] == 1
        return self.say(503 if self.path.startswith("/flaky") and first else 200, "done")

    def say(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
