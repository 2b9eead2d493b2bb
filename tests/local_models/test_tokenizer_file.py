"""A model's file opens to the same tokenizer at both ends; a hostile one is never opened."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from local_models import tokenizer_cache
from local_models.errors import CannotOpen
from local_models.gguf import check_metadata, is_exact, metadata_of, tensor_bytes
from local_models.llama_cpp.model import Model
from local_models.store import open_store
from local_models.tokenizer import Tokenizer
from local_models.tokenizer_cache import TokenizerCache
from local_models.tokenizer_file import MAX_BYTES, TokenizerFile, tokenizer_file
from local_models.vocabulary import Vocabulary, relate
from tests.local_models.conftest import silent
from tests.local_models.gguf_files import F16, F32, Q4_0, Q6_K, Q8_0, gguf_header

TEXT = "def f(x):\n    return x  # é 日本 🎉 <|im_end|>"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def gguf(smollm: Callable[[str], Model]) -> TokenizerFile:
    return tokenizer_file(smollm("q8_0").path)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A byte-level tokenizer of 256 bytes and two markers, in Hugging Face's files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens(["<think>"])
    files = {
        "tokenizer_config.json": {
            "bos_token": {"content": "<|im_start|>"},
            "eos_token": "<|im_end|>",
            "chat_template": [{"name": "default", "template": TEMPLATE}],
        },
        "generation_config.json": {"eos_token_id": [256, 257], "temperature": 0.7, "top_k": 20},
    }
    made.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.system
def test_a_packed_gguf_tokenizer_is_the_models_own(
    smollm: Callable[[str], Model], gguf: TokenizerFile
) -> None:
    model, opened = smollm("q8_0"), TokenizerFile.unpack(gguf.pack()).open()

    assert opened.vocabulary == model.vocabulary
    assert opened.encode(TEXT) == model.tokenize(TEXT, True)


@pytest.mark.system
def test_hugging_faces_files_say_pieces_markers_ends_and_defaults(directory: Path) -> None:
    padded = msgspec.structs.replace(tokenizer_file(directory), padding=41)
    found = TokenizerFile.unpack(padded.pack())
    tokenizer = found.open()
    vocabulary = tokenizer.vocabulary

    assert found.defaults == {"temperature": 0.7, "top_k": 20}
    assert vocabulary.markers == {"<|im_start|>": 256, "<|im_end|>": 257}
    assert (vocabulary.stop_tokens, vocabulary.eos) == ({256, 257}, 257)
    assert (len(vocabulary.pieces), vocabulary.padding) == (259, 41)
    shown = b"".join(vocabulary.piece(token, special=True) for token in tokenizer.encode(TEXT))
    assert shown == TEXT.encode()
    assert tokenizer.encode("<|im_end|><think>") == [257, 258]
    assert 257 not in tokenizer.encode("<|im_end|>", special=False)


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
IN_FILES = {
    "chat_template.jinja": "plain",
    "additional_chat_templates/tool_use.jinja": "tools",
    "tokenizer_config.json": '{"chat_template": "old"}',
}


@pytest.mark.system
@pytest.mark.parametrize(
    "files", [{"tokenizer_config.json": json.dumps({"chat_template": NAMED})}, IN_FILES]
)
def test_a_template_named_tool_use_is_for_chats_with_tools(
    directory: Path, files: dict[str, str]
) -> None:
    (directory / "additional_chat_templates").mkdir()
    for name, text in files.items():
        (directory / name).write_text(text)

    tokenizer = tokenizer_file(directory).open()

    assert tokenizer.chat([]) == tokenizer.encode("plain")
    assert tokenizer.chat([], tools=[{}]) == tokenizer.encode("tools")


@pytest.mark.system
def test_a_gguf_file_names_its_template_for_tools_too(
    gguf: TokenizerFile, tmp_path: Path
) -> None:
    texts = [b"tokenizer.chat_template.tool_use", b"tools"]
    key, text = (struct.pack("<Q", len(text)) + text for text in texts)
    version, _, pairs = struct.unpack_from("<IQQ", gguf.data, 4)
    header = struct.pack("<4sIQQ", b"GGUF", version, 0, pairs + 1)
    path = tmp_path / "named.gguf"
    path.write_bytes(header + gguf.data[24:] + key + struct.pack("<I", 8) + text)

    tokenizer = tokenizer_file(path).open()

    assert tokenizer.chat([], tools=[{}]) == tokenizer.encode("tools")
    assert tokenizer.chat([{"role": "user", "content": "a"}]) == gguf.open().chat(
        [{"role": "user", "content": "a"}]
    )


@pytest.mark.system
def test_a_chat_follows_the_template_of_the_files_or_ones_own(directory: Path) -> None:
    chat = [{"role": "user", "content": "a<|im_end|>"}]

    tokens = tokenizer_file(directory).open().chat(chat)

    assert (tokens[0], tokens[-1], tokens.count(257)) == (256, 257, 1)
    assert tokenizer_file(directory, "<|im_end|>").open().chat(chat) == [257]


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"no tokenizer\.json"):
        tokenizer_file(tmp_path)


@pytest.mark.system
def test_a_tokenizer_is_tried_out_once_and_then_found(
    gguf: TokenizerFile, tmp_path: Path
) -> None:
    cache = TokenizerCache(tmp_path / "kept")

    assert cache.find(gguf.digest) is None
    assert cache.keep(gguf.digest, gguf.pack()).encode(TEXT) == gguf.open().encode(TEXT)
    found = cache.find(gguf.digest)
    assert found is not None
    assert found.vocabulary == gguf.open().vocabulary


def hostile(gguf: TokenizerFile) -> dict[str, bytes]:
    """Return packed tokenizers that must not be opened, by what is wrong with each."""
    change = msgspec.structs.replace
    long = gguf.data.replace(b"\4\0\0\0\0\0\0\0", b"\xff" * 8)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    return {
        "bomb": zlib.compress(bytes(MAX_BYTES + 1)),
        "cut": gguf.pack()[:-100],
        "other type": zlib.compress(msgspec.msgpack.encode({"kind": "pickle", "data": b""})),
        "no tokens": change(gguf, kind="huggingface", data=b"{}").pack(),
        "tensors": change(gguf, data=gguf.data[:8] + b"\1" + gguf.data[9:]).pack(),
        "garbage": change(gguf, data=long).pack(),
        "template": change(gguf, template="{% for %}").pack(),
        "endless template": change(gguf, template=endless).pack(),
    }


HOSTILE = ("bomb", "cut", "other type", "no tokens", "tensors", "garbage", "template")


@pytest.mark.system
@pytest.mark.parametrize("name", [*HOSTILE, "endless template"])
def test_a_hostile_tokenizer_is_an_error_and_nothing_is_kept(
    name: str, gguf: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_cache, "TRIAL_S", 5.0)
    packed = hostile(gguf)[name]
    try:
        digest = TokenizerFile.unpack(packed).digest
    except CannotOpen:
        digest = "0" * 32

    with pytest.raises(CannotOpen):
        TokenizerCache(tmp_path / "kept").keep(digest, packed)
    assert not list((tmp_path / "kept").glob("*"))


def test_a_tokenizer_of_another_digest_is_an_error(gguf: TokenizerFile, tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match="digest"):
        TokenizerCache(tmp_path).keep("0" * 32, gguf.pack())


# The templates and vocabularies of SmolLM2 and Qwen2.5-Coder.

READABLE = st.characters(codec="utf-8", max_codepoint=0xFFFF, exclude_categories=["Cc", "Cs"])
"""SmolLM2 has no token for some control characters, nor for the bytes of rare planes."""


@pytest.fixture(scope="module")
def model(smollm: Callable[[str], Model]) -> Model:
    return smollm("q8_0")


@cache
def opened(path: Path) -> Tokenizer:
    return tokenizer_file(path).open()


def qwen() -> Tokenizer:
    store = open_store(os.environ)
    store.pull("qwen2.5-coder-0.5b-q4_0", silent)
    return opened(store.find("qwen2.5-coder-0.5b-q4_0", "draft").path)


@pytest.mark.models
@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_a_chat_has_the_tokens_of_the_rendered_string(model: Model, text: str) -> None:
    tokens = opened(model.path).chat(
        [{"role": "system", "content": " x\n"}, {"role": "user", "content": text}]
    )

    rendered = (
        f"<|im_start|>system\n x\n<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokens == model.tokenize(rendered, True)


@pytest.mark.models
@settings(max_examples=50, deadline=None)
@given(text=st.text(READABLE, max_size=60))
def test_the_pieces_of_a_text_are_its_bytes(model: Model, text: str) -> None:
    tokenizer = opened(model.path)

    assert b"".join(map(tokenizer.piece, tokenizer.encode(text))) == text.encode()


@pytest.mark.models
def test_qwens_own_template_shows_tools_calls_and_results() -> None:
    tokenizer = qwen()
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"name": "f", "description": "<|im_end|>", "parameters": parameters}
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1, "b": "ü"}}}
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
    ]

    tokens = tokenizer.chat(chat, tools=[{"type": "function", "function": function}])

    shown = b"".join(tokenizer.vocabulary.piece(t, special=True) for t in tokens).decode()
    assert tokenizer.takes_tools
    assert '{"type": "function", "function": {"name": "f", "description": "<|im_end|>"' in shown
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "ü"}}\n</tool_call>' in shown
    assert "<tool_response>\n7\n</tool_response>" in shown
    assert "None" not in shown
    assert shown.count("<|im_end|>") == tokens.count(tokenizer.vocabulary.eos) + 1 == 5


@pytest.mark.models
def test_qwen_fills_in_by_its_own_markers() -> None:
    tokenizer = qwen()

    tokens = tokenizer.infill("def f(", "):")

    shown = b"".join(tokenizer.vocabulary.piece(t, special=True) for t in tokens)
    assert shown == b"<|fim_prefix|>def f(<|fim_suffix|>):<|fim_middle|>"
    assert [tokens[0], tokens[-1]] == [151659, 151660]


# A GGUF file's metadata is copied whole, and no bytes lead the walk astray.


HEADER = struct.Struct("<4sIQQ")


@pytest.fixture(scope="module")
def metadata(smollm: Callable[[str], Model]) -> bytes:
    return metadata_of(smollm("q8_0").path)


@settings(max_examples=200)
@given(data=st.data())
def test_no_damage_does_more_than_raise(metadata: bytes, data: st.DataObject) -> None:
    start = bytearray(metadata[:4096])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(start) - 8))
        start[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))

    with pytest.raises(ValueError, match=r"cut|GGUF|array|kind|nothing after"):
        check_metadata(bytes(start))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "no GGUF", id="empty"),
        pytest.param(HEADER.pack(b"GGUF", 3, 0, 1 << 60), "be read", id="too-many-pairs"),
        pytest.param(HEADER.pack(b"GGUF", 9, 0, 0), "be read", id="unknown-version"),
        pytest.param(HEADER.pack(b"GGUF", 3, 1, 0), "no tensors", id="tensors"),
        pytest.param(HEADER.pack(b"GGUF", 3, 0, 0) + b"x", "nothing after", id="more"),
        pytest.param(
            HEADER.pack(b"GGUF", 3, 0, 1) + struct.pack("<QII", 0, 9, 8) + b"\xff" * 8,
            "longer than the file",
            id="endless-array",
        ),
    ],
)
def test_what_is_no_metadata_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_metadata(data)


# Exact weights are told by a file's tensors, whatever its name says.


@pytest.mark.parametrize(
    ("matrices", "exact"),
    [
        ((Q8_0, Q8_0), True),
        ((Q4_0, Q8_0, F32), True),
        ((Q4_0, Q6_K), False),
        ((F16,), False),
        ((F32,), False),
        ((), False),
    ],
)
def test_weights_are_exact_if_every_matrix_is(
    tmp_path: Path, matrices: tuple[int, ...], exact: bool
) -> None:
    file = tmp_path / "Q8_0.gguf"
    file.write_bytes(gguf_header(*matrices))

    assert is_exact(file) is exact


@pytest.mark.parametrize(
    "content", [b"", b"not a gguf", gguf_header(Q8_0)[:-9], b"GGUF" + b"\xff" * 99]
)
def test_a_file_of_another_form_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)

    with pytest.raises(CannotOpen, match=r"a\.gguf"):
        is_exact(file)


@pytest.mark.models
def test_what_the_catalogue_makes_is_exact_and_a_target_is_made_so(tmp_path: Path) -> None:
    shared = open_store({})
    made = [shared.find(f"smollm2-135m-{kind}", "draft").path for kind in ("q4_0", "q8_0")]
    given = shared.find("smollm2-135m", "draft").path
    store = open_store({"PICOSPEC_CACHE": str(tmp_path)})

    (target,) = store.pull(str(given), silent, "target")

    assert [is_exact(path) for path in (*made, given, target)] == [True, True, False, True]
    assert store.find(str(given), "target").path == target
    assert store.find(str(given), "target").name == given.stem
    assert store.pull(str(given), silent, "target") == [target]
    assert store.pull(str(made[1]), silent, "target") == [made[1]]
    store.remove(str(given))
    assert store.find(str(given), "target").path == given
    assert given.exists()


@pytest.mark.models
def test_the_sizes_of_tensors_are_those_of_their_blocks(smollm: Callable[[str], Model]) -> None:
    path = smollm("q8_0").path

    sizes = tensor_bytes(path)

    assert sizes["token_embd.weight"] == 49152 * 576 * 34 // 32
    assert sizes["blk.29.attn_norm.weight"] == 576 * 4
    assert sum(sizes.values()) + len(metadata_of(path)) < path.stat().st_size
    assert sum(sizes.values()) > 0.97 * path.stat().st_size


# The meaning of a token id, and how two vocabularies are related.

WORDS = Vocabulary(
    pieces=(b"<|im_end|>", b"</s>", b"hello", b"<tool_call>"),
    special=frozenset({0}),
    stop_tokens=frozenset({0}),
)


def test_a_marker_shows_nothing_unless_asked_for() -> None:
    assert WORDS.piece(0) == b""
    assert WORDS.piece(0, special=True) == b"<|im_end|>"
    assert WORDS.markers == {"<|im_end|>": 0}


def test_an_id_that_is_no_token_shows_nothing() -> None:
    assert WORDS.piece(4) == b""


PADDED = dataclasses.replace(WORDS, padding=1)
LONGER = dataclasses.replace(WORDS, pieces=(*WORDS.pieces, b"<think>"))
SMALLER = Vocabulary((b"a", b"b"), frozenset(), frozenset())


@pytest.mark.parametrize(
    ("target", "draft", "relation"),
    [
        (WORDS, dataclasses.replace(WORDS), "identical"),
        (PADDED, WORDS, "padded"),
        (WORDS, PADDED, "padded"),
        (LONGER, PADDED, "padded"),  # the draft model can read the token more
        (WORDS, LONGER, "padded"),
        (LONGER, WORDS, "different"),
        (WORDS, SMALLER, "different"),
    ],
)
def test_padding_changes_no_meaning_and_neither_do_tokens_that_a_draft_model_can_read(
    target: Vocabulary, draft: Vocabulary, relation: str
) -> None:
    assert relate(target, draft) == relation


@given(st.integers(0, 3), st.binary(max_size=3))
def test_one_other_piece_makes_vocabularies_different(token: int, piece: bytes) -> None:
    pieces = (*WORDS.pieces[:token], piece, *WORDS.pieces[token + 1 :])

    expected = "identical" if pieces == WORDS.pieces else "different"
    assert relate(WORDS, dataclasses.replace(WORDS, pieces=pieces)) == expected
