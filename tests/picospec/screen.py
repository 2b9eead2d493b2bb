"""A console whose text a test reads."""

from __future__ import annotations

import io

from rich.console import Console


class Screen(Console):
    """It is 100 characters wide, and no terminal."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"file": io.StringIO(), "width": 100, **options})  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        """Return all that was written since its file was set."""
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()
