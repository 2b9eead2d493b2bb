"""A Python that "has vLLM": it serves the API of a verifier, or of vLLM, without a model.

    fake_vllm.py -m verifier|bench.run.stock_vllm --port N ...

Each line of FAKE_LOG is a start or an end, with the arguments.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODULE, ARGUMENTS = sys.argv[2], sys.argv[3:]
READY = {"verifier": "/ready", "bench.run.stock_vllm": "/health"}[MODULE]
MESSAGES = int(os.environ.get("FAKE_MESSAGES", "99"))
"""The context has room for so many."""

SPECULATES = "--speculation" in ARGUMENTS


def note(event: str) -> None:
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(json.dumps([event, MODULE, ARGUMENTS]) + "\n")


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = self.path in (READY, "/v1/models")
        self._reply(200 if known else 404, json.dumps({"data": [{"id": "fake"}]}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if len(asked["messages"]) > MESSAGES:
            error = {"message": "the model's maximum context length is 8192 tokens"}
            return self._reply(400, json.dumps({"error": error}).encode())
        said: list[dict[str, object]] = [
            {"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in "abc"
        ]
        ends = {"choices": [{"delta": {}, "finish_reason": "length"}]}
        counted = {"num_draft_tokens": 4, "num_accepted_draft_tokens": 2}
        usage: dict[str, object] = {
            "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5},
            "metrics": {"speculative_decoding": counted} if SPECULATES else None,
        }  # fmt: skip
        events = [f"data: {json.dumps(each)}\n\n" for each in (*said, ends, usage)]
        self._reply(200, "".join(events).encode())

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def stop(*_: object) -> None:
    note("ends")
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    port = int(ARGUMENTS[ARGUMENTS.index("--port") + 1])
    server = ThreadingHTTPServer(("127.0.0.1", port), Answers)
    note("starts")
    server.serve_forever()
