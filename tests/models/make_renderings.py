"""`.venv-vllm/bin/python -m tests.models.make_renderings` writes `templates/renderings.json`.

It holds what `transformers` renders of each chat by each template, or null where it raises.
"""

from __future__ import annotations

import datetime
import json
from functools import cache
from typing import Any, Final
from unittest import mock

from tests.models.chats import FAMILIES, TEMPLATES, Chat, chats

RENDERINGS: Final = TEMPLATES / "renderings.json"
TODAY: Final = datetime.datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - local, as templates have it


@cache
def tokenizer_of(name: str) -> Any:  # noqa: ANN401 - transformers' own type
    """Return a tokenizer of `transformers` with this template; it is for rendering only."""
    import tokenizers
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        chat_template=(TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"),
        **FAMILIES[name].named,
    )


def rendered(name: str, chat: Chat) -> str | None:
    """Return what `transformers` renders, at a fixed date; None if it raises."""
    given: dict[str, Any] = {"tools": chat.tools or None, "add_generation_prompt": True}
    with mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
        clock.now.return_value = TODAY
        try:
            text: str = tokenizer_of(name).apply_chat_template(
                chat.messages, tokenize=False, **(given | chat.options)
            )
        except Exception:  # whatever it raises
            return None
    return text


def main() -> None:
    found = {
        name: {each: rendered(name, chat) for each, chat in chats(family).items()}
        for name, family in sorted(FAMILIES.items())
    }
    text = json.dumps(found, ensure_ascii=False, indent=0, sort_keys=True)
    RENDERINGS.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
