"""A fake service: `python fake_service.py PORT [dies|ignores-sigterm]`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "ok", "data": [{"id": "fake"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    port, manner = int(sys.argv[1]), sys.argv[2:]
    if manner == ["dies"]:
        sys.stderr.write("no model to be found\n")
        sys.exit(3)
    server = HTTPServer(("127.0.0.1", port), Handler)

    def stop(*_: object) -> None:
        print_line("stopping")
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, signal.SIG_IGN if manner == ["ignores-sigterm"] else stop)
    print_line("serving")
    server.serve_forever(poll_interval=0.02)
    server.server_close()


if __name__ == "__main__":
    main()
