"""A server of embeddings, by llama.cpp: `python -m tests.clients.embedding_service PORT`."""

from __future__ import annotations

import os
import sys

import llama_cpp
import uvicorn
from fastapi import FastAPI

from local_models.store import open_store

MODEL = "qwen2.5-coder-0.5b"


def main(port: int) -> None:
    path = open_store(os.environ).find("qwen2.5-coder", "draft").path
    pooling = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    model = llama_cpp.Llama(str(path), embedding=True, pooling_type=pooling, verbose=False)
    app = FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {}

    @app.post("/v1/embeddings")
    def embed(body: dict[str, object]) -> object:
        return model.create_embedding(body["input"], MODEL)  # type: ignore[arg-type]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
