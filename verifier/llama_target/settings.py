"""Settings of the embedded target."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LlamaSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: Annotated[int, Field(ge=1, le=256)] = 8
    """Sessions at once. Memory for the KV of all of them is taken at the start."""

    waiting: Annotated[int, Field(ge=0, le=4096)] = 64
    """Sessions that may wait for a slot; one more is rejected."""

    context_tokens: Annotated[int, Field(ge=16)] = 4096
    """Of a session, prompt and answer together; never more than the model was trained for."""

    threads: Annotated[int, Field(ge=1)] | None = None
    """Of llama.cpp. None: one for each CPU this process may use. With more than one the KV is
    kept in Q8_0: with a 16-bit cache llama.cpp splits a row's attention among threads, and its
    last bits depend on the rows beside it."""

    max_rows: Annotated[int, Field(ge=2, le=4096)] = 256
    """Rows of one pass, all sessions together."""

    prefill_rows: Annotated[int, Field(ge=1, le=63)] = 63
    """Prompt tokens decoded between two passes. Small: others stream on while a prompt is read.
    From 64 rows of a sequence on, llama.cpp's attention rounds differently: the KV of a prompt
    would then depend on how it was cut."""

    @model_validator(mode="after")
    def _rows_suffice(self) -> Self:
        if self.max_rows < max(self.slots, self.prefill_rows):
            raise ValueError("max_rows must be at least slots and at least prefill_rows")
        return self
