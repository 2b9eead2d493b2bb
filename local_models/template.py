"""A chat becomes the text of a prompt by its model's template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.system import limit_memory, limited_cpu
from local_models.confined import Worker, serve

# Converts the messages of a chat to the form that its template takes, as vLLM does.
#
# * A content is a text, in which empty parts leave no trace; or, for a template that reads
#   parts, a list of them, except for a tool's result.
# * A template that refuses system messages after the first message gets a single one, which is
#   the first; see `system_first`.
# * Many templates do not know "developer", OpenAI's newer name for "system". For those, such
#   messages become system messages, and if a chat has any of them, all of its system messages
#   are joined into one, which is its first.

Json = Mapping[str, object]


def shaped(messages: Sequence[Json], template: str, *, takes_parts: bool) -> list[Json]:
    """Return the messages as a template takes them. template: its text."""
    shaped_messages = [_with_content(message, takes_parts=takes_parts) for message in messages]
    knows_developers = any(f"{quote}developer{quote}" in template for quote in "\"'")
    if knows_developers or all(message["role"] != "developer" for message in shaped_messages):
        return shaped_messages
    return system_first([_as_system(message) for message in shaped_messages])


def _with_content(message: Json, *, takes_parts: bool) -> Json:
    parts = _parts(message.get("content"))
    if not takes_parts:
        return {**message, "content": _text(part for part in parts if part["text"])}
    return {**message, "content": _text(parts) if message["role"] == "tool" else parts}


def _parts(content: object) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list | tuple) else []


def _text(parts: Iterable[dict[str, str]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _as_system(message: Json) -> Json:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def system_first(messages: Sequence[Json]) -> list[Json]:
    """Return the messages with all system messages, if any, joined into the first message."""
    system = [message for message in messages if message["role"] == "system"]
    if not system or (len(system) == 1 and messages[0] is system[0]):
        return list(messages)
    texts = [_text(_parts(message["content"])) for message in system]
    first = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [first, *(message for message in messages if message["role"] != "system")]


# Renders chats with a model's chat template, as `transformers` does.
#
# The Jinja template runs in a sandbox, because it is foreign code from the target. `renderer`
# limits its time and memory, which this module does not.

Clock = Callable[[], datetime.datetime]

MAX_BYTES: Final = 32 << 20
"""A chat without a known smaller limit has this one: four times the largest request body."""


class ChatTemplate:
    """Renders a Jinja template. variables: values that it may use besides a request's own, such
    as `bos_token`. Raises ValueError if it cannot be parsed."""

    def __init__(
        self, text: str, variables: Json, *, now: Clock = datetime.datetime.now
    ) -> None:
        self.text = text
        environment = _environment(now)
        try:
            parsed = environment.parse(text)
            self._template = environment.from_string(parsed)
        except Exception as error:  # parsing computes constants, which may raise anything
            raise ValueError(f"the chat template cannot be read: {error}") from error
        self._variables = variables
        self.takes_tools = any(name.name == "tools" for name in parsed.find_all(nodes.Name))

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json],
        options: Json,
        max_bytes: int = MAX_BYTES,
    ) -> str:
        """Return the chat with the assistant's turn opened. Raises ValueError, and
        OverflowError if it has more than `max_bytes`.

        options: more variables, which replace the template's own. Many templates know some of
        them: `documents`, `enable_thinking`, `add_generation_prompt`.
        """
        _check(options)
        variables = {
            "add_generation_prompt": True,
            "documents": None,
            **self._variables,
            **options,
        }
        variables |= {"messages": messages, "tools": tools or None}
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables):
                size += len(piece.encode(errors="surrogatepass"))
                if size > max_bytes:
                    break
                pieces.append(piece)
        except MemoryError:
            raise
        except Exception as error:  # the template is foreign code: it may raise anything
            raise ValueError(f"the chat template refuses: {error}") from error
        if size > max_bytes:
            raise OverflowError(f"the chat has more than {max_bytes} bytes")
        return "".join(pieces)


def _check(options: Json) -> None:
    if taken := {"messages", "tools"} & options.keys():
        raise ValueError(f"{min(taken)} is no template variable: it has a field of its own")
    match options.get("documents"):
        case None:
            return
        case list(documents) if all(isinstance(each, Mapping) for each in documents):
            return
    raise ValueError("documents: expected a list of objects")


def joined(default: str, with_tools: str | None) -> str:
    """Return one template made of two, if there are two: `default` is for chats without tools.

    Neither a line break after a tag nor the last one of a template is text.
    """
    if not with_tools:
        return default
    first, last = (text.removesuffix("\n") for text in (with_tools, default))
    return f"{{% if tools %}}\n{first}{{%+ else %}}\n{last}{{%+ endif %}}"


class _Generation(Extension):
    """Renders the body of {% generation %}, a tag that marks the assistant's turns for
    training. The body is a block: variables set in it end with it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja requires a set here

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment(now: Clock) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode a value. Jinja's own filter escapes HTML, which chat templates do not expect."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


# Renders chats in processes of their own, which a template may crash or bring to its limits.
#
# The template comes from the target. Jinja's sandbox bars forbidden access, but not endless
# work: a loop, a power, a text that is multiplied. Even the compiler computes constants. So a
# template is parsed and run in such a process only, and the system ends the process at a limit.
# A chat that takes too long is lost together with its process. Other chats have processes of
# their own, one for each thread that is rendering.
#
# Such a process answers each JSON line with one: first the template, then chats.

CPU_S: Final = 2.0
"""A chat takes at most this processor time. One of 10,000 tokens takes some milliseconds."""

MEMORY_BYTES: Final = 512 << 20
"""The process has at most this address space; an idle process uses a twentieth of it."""

START_TIMEOUT_S: Final = 60.0
"""A process that does not start within this time is given up. A start takes a fifth of a second
on an idle machine."""

ANSWER_TIMEOUT_S: Final = 10.0
"""A chat that is not rendered within this time is given up. The process limits its processor
time, which takes longer on a busy machine."""

_MAX_ESCAPED: Final = 6
"""A byte of text takes at most this many bytes of JSON."""

_MAX_OTHER_BYTES: Final = 1 << 20
"""An answer has at most this many bytes beside the text."""


class Overrun(ValueError):
    """The template takes more time or memory for a chat than it may."""

    def __init__(self) -> None:
        super().__init__(f"the chat template takes more than {CPU_S:g} s, or too much memory")


class Renderer:
    """Renders as a ChatTemplate does, in another process. variables: see there. Raises
    ValueError if the template cannot be parsed, or OSError if no process can be started."""

    def __init__(self, text: str, variables: Json) -> None:
        self.text = text
        self._variables = variables
        self._idle: list[Worker] = []
        self.takes_tools = False
        self._idle.append(self._started())

    def render(
        self,
        messages: Sequence[Json],
        tools: Sequence[Json],
        options: Json,
        max_bytes: int = MAX_BYTES,
    ) -> str:
        """See ChatTemplate.render. Several threads may call it at once."""
        chat = {
            "messages": messages,
            "tools": tools,
            "options": options,
            "max_bytes": max_bytes,
        }
        answer = self._ask(worker := self._taken(), chat, ANSWER_TIMEOUT_S, max_bytes)
        self._idle.append(worker)
        if reason := answer.get("error"):
            raise ValueError(reason)
        if reason := answer.get("too_long"):
            raise OverflowError(reason)
        return str(answer["text"])

    def _taken(self) -> Worker:
        """Return a process that no other thread uses."""
        with suppress(IndexError):
            while (worker := self._idle.pop()).process.poll() is not None:
                worker.end()
            return worker
        return self._started()

    def _started(self) -> Worker:
        """Start a process with the template. Raises ValueError."""
        worker = Worker("local_models.template")
        template = {"text": self.text, "variables": dict(self._variables)}
        answer = self._ask(worker, template, START_TIMEOUT_S, 0)
        if reason := answer.get("error"):
            raise ValueError(reason)
        self.takes_tools = bool(answer["takes_tools"])
        return worker

    def _ask(
        self, worker: Worker, question: Json, within_s: float, text_bytes: int
    ) -> dict[str, Any]:
        max_bytes = _MAX_ESCAPED * text_bytes + _MAX_OTHER_BYTES
        try:
            answer = worker.ask(json.dumps(question).encode(), within_s, max_bytes)
        except (EOFError, OSError) as error:
            raise Overrun from error
        reply: dict[str, Any] = json.loads(answer)
        return reply


def main() -> None:
    """Answer questions until the input ends."""
    limit_memory(MEMORY_BYTES)
    templates: list[ChatTemplate] = []

    def answer(line: bytes) -> bytes:
        with limited_cpu(CPU_S):
            try:
                reply = _answered(json.loads(line), templates)
            except ValueError as error:
                reply = {"error": str(error)}
            except OverflowError as error:
                reply = {"too_long": str(error)}
            except MemoryError:
                reply = {"error": "the chat template takes too much memory"}
            return json.dumps(reply).encode()

    serve(answer)


def _answered(request: dict[str, Any], templates: list[ChatTemplate]) -> dict[str, object]:
    if templates:
        return {"text": templates[0].render(**request)}
    templates.append(ChatTemplate(**request))
    return {"takes_tools": templates[0].takes_tools}


if __name__ == "__main__":
    main()
