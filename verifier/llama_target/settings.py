"""The embedded target has these settings."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from picospec.gateway.hosting.settings import Table


class LlamaSettings(Table):
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    """This many sessions run at once. The KV of all is allocated at the start."""

    waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    """This many sessions may wait for a slot; further ones are rejected."""

    context_tokens: Annotated[int, Field(ge=16)] | None = None
    """A session has at most this many tokens, prompt and answer together. None: as many as the
    model was trained for, or as fit into the memory (models.llama_cpp.model)."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """llama.cpp uses this many threads. None: one for each core that this process may use. More
    than one keep the KV in Q8_0: with a 16-bit cache llama.cpp splits a row's attention among
    threads, and its last bits depend on the other rows of the pass."""

    max_rows: Annotated[int, Field(ge=2, le=4096)] = 256
    """One pass has at most this many rows; each of its sessions may need two."""

    prefill_rows: Annotated[int, Field(ge=1, le=63)] = 63
    """At most this many prompt tokens are decoded between two passes; beside running sessions
    only as many as take the time of two passes (verifier.llama_target.pieces), so that these go
    on. From 64 rows of a sequence on llama.cpp's attention rounds differently, and a prompt's
    KV would depend on how it was divided."""

    @model_validator(mode="after")
    def _rows_suffice(self) -> Self:
        if self.max_rows < max(2 * self.slots, self.prefill_rows):
            raise ValueError("max_rows must be at least twice the slots, and prefill_rows")
        return self
