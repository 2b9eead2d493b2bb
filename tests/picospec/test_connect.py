"""Each client of the table is connected, and everything is as it was when that is undone."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from picospec.client_files import Changed, Copies
from picospec.client_settings import NotMergeable, merged
from picospec.connect import show, show_list, undo, write
from picospec.known_clients import Client, Edge, FilePart, read_clients
from picospec.launch import run_client
from tests.picospec.screen import Screen

CLIENTS = read_clients()
EDGE = Edge("http://127.0.0.1:8000", 'a "model" \\ of\'s', 32768, "k$ey")
PARTS = [
    pytest.param(client, part, id=f"{client.name}-{number}")
    for client in CLIENTS.values()
    for number, part in enumerate(client.parts)
]
READERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
BEFORE = {
    "json": '{\n    "theirs": {"é": [1, 2.50]},\r\n    "env": {"PATH": "x"}}\n\n',
    "toml": '# mine\nmodel = "gpt" # old\n[model_providers.other]\nname = "o"\n[tui]\nx=1\n',
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME", "CLAUDE_CONFIG_DIR", "CONTINUE_GLOBAL_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(client: Client, home: Path) -> tuple[bool, str]:
    screen = Screen()
    done = write(client, EDGE, os.environ, Copies(home / "copies"), screen)
    return done, screen.text


@pytest.mark.parametrize(("client", "part"), PARTS)
def test_each_text_is_of_its_format_whatever_the_names_are(
    client: Client, part: FilePart
) -> None:
    text = EDGE.fill(part)

    if part.format in READERS:
        assert EDGE.model in str(READERS[part.format](text)).replace("\\\\", "\\").replace(
            "\\'", "'"
        )
    if part.format == "shell":
        assert shlex.split(text.splitlines()[-1]) == ["export", "OPENAI_API_KEY=k$ey"]
    assert "${" not in text
    assert EDGE.url in text or client.name == "aider"


def test_a_client_that_can_list_models_lists_all_and_begins_with_the_first() -> None:
    others = tuple(replace(EDGE, model=name, context=8) for name in ("b", "c: #"))
    edge, listing = replace(EDGE, others=others), set()

    for client in CLIENTS.values():
        for part in client.parts:
            alone, text = EDGE.fill(part), edge.fill(part)
            if text != alone:
                read = str(READERS[part.format](text))
                assert all(each.model in read for each in others)
                listing.add(client.name)

    assert listing == {"opencode", "aider", "continue", "zed", "vscode"}
    assert 'model": "picospec/a ' in edge.fill(CLIENTS["opencode"].parts[0])


@pytest.mark.parametrize("name", [client.name for client in CLIENTS.values()])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_is_written_and_then_again_as_it_was(name: str, there: bool, home: Path) -> None:
    client, before = CLIENTS[name], dict[Path, bytes]()
    for part in client.parts:
        if there and part.format in BEFORE and (path := part.path(os.environ)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("[]" if name == "vscode" else BEFORE[part.format], newline="")
            path.chmod(0o640)
            before[path] = path.read_bytes()

    done, shown = put(client, home)
    again, _ = put(client, home)

    assert done is again is any(part.files for part in client.parts)
    assert not done or EDGE.key not in shown
    for path, old in before.items():
        assert path.read_bytes() != old
        has_key = EDGE.key in path.read_text()
        assert path.stat().st_mode & 0o777 == (0o600 if has_key else 0o640)
        assert f"--- {path}" in shown
    undo(client, Copies(home / "copies"), Screen())
    files = [path for part in client.parts if (path := part.path(os.environ))]
    assert {path: path.read_bytes() for path in files if path.exists()} == before
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in before)
    assert not list((home / "copies").glob("*/*"))


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
)


@given(st.dictionaries(names, values, max_size=4), st.sampled_from([None, 1, 4, "\t"]))
def test_whatever_json_had_it_still_has(theirs: dict[str, object], indent: int | None) -> None:
    ours = {"provider": {"picospec": {"x": 1}}}
    before = json.dumps({**theirs, "provider": {"o": 2, "picospec": theirs}}, indent=indent)

    after = json.loads(merged("json", before, json.dumps(ours)))

    assert after.pop("provider") == {"o": 2, "picospec": {**theirs, "x": 1}}
    assert list(after.items()) == [each for each in theirs.items() if each[0] != "provider"]


def test_toml_keeps_its_comments_and_tables() -> None:
    after = merged("toml", BEFORE["toml"], EDGE.fill(CLIENTS["codex"].parts[0]))

    assert "# mine" in after
    assert "# old" in after
    read = tomllib.loads(after)
    assert read["model_provider"] == "picospec"
    assert read["model_providers"]["other"] == {"name": "o"}
    assert read["tui"] == {"x": 1}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("zed", b'{\n // mine\n "a": 1}', "comments"),
        ("opencode", b'{"a": 1, "a": 2}', "twice"),
        ("claude", b"[]", "something else"),
        ("claude", b'{"a": "\xff"}', "utf-8"),
        ("codex", b"model_providers = 3\nmodel = ", "TOML"),
        ("continue", b"models: [] # mine\n", "comments"),
    ],
)
def test_what_cannot_be_merged_is_left_and_shown(
    name: str, content: bytes, reason: str, home: Path
) -> None:
    path = CLIENTS[name].parts[0].path(os.environ)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    done, shown = put(CLIENTS[name], home)

    assert not done
    assert reason in shown
    assert EDGE.url in shown
    assert path.read_bytes() == content


def test_what_the_user_changes_after_a_write_is_never_lost(home: Path) -> None:
    path, copies = home / ".codex" / "config.toml", Copies(home / "copies")
    put(CLIENTS["codex"], home)
    path.write_text("theirs = 1\n")

    with pytest.raises(Changed, match=r"config\.toml has changed since; the copy of before is"):
        undo(CLIENTS["codex"], copies, Screen())
    put(CLIENTS["codex"], home)
    undo(CLIENTS["codex"], copies, Screen())

    assert path.read_text() == "theirs = 1\n"


def test_a_link_to_a_file_stays_a_link(home: Path) -> None:
    real, link = home / "dotfiles.json", home / ".claude" / "settings.json"
    real.write_text("{}")
    link.parent.mkdir()
    link.symlink_to(real)

    put(CLIENTS["claude"], home)

    assert link.is_symlink()
    assert EDGE.url in real.read_text()


@pytest.mark.system
@pytest.mark.parametrize("name", [c.name for c in CLIENTS.values() if c.launch])
def test_a_client_is_launched_with_texts_that_are_gone_afterwards(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, out = CLIENTS[name], home / "out.json"
    assert client.launch
    fake = home / (client.launch.program or client.program)
    script = (
        "import json, os, sys; from pathlib import Path\n"
        "files = {a: Path(a).read_text() for a in sys.argv if a.startswith('/tmp/picospec-')}\n"
        f"Path({str(out)!r}).write_text(json.dumps([sys.argv[1:], dict(os.environ), files]))\n"
        "sys.exit(7) if name == 'codex' else os.kill(os.getpid(), 9)\n".replace(
            "name", repr(name)
        )
    )
    fake.write_text(f"#!/usr/bin/env python3\n{script}")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    for secret in ("API_KEYS", "VERIFIER_KEY", "RELAY_KEY", "SALT_SECRET"):
        monkeypatch.setenv(f"PICOSPEC_{secret}", "a secret of the services")

    status = run_client(client, EDGE, ["--theirs"], os.environ)

    arguments, environ, files = json.loads(out.read_text())
    assert status == (7 if name == "codex" else 128 + 9)
    assert arguments[-1] == "--theirs"
    found = str([arguments, environ, files])
    assert EDGE.url in found
    assert EDGE.key in found
    assert "a secret of the services" not in found
    assert EDGE.key not in " ".join(arguments)  # which all users of the machine can list
    assert not any(Path(file).exists() for file in files)
    assert sorted(path.name for path in home.iterdir()) == sorted([fake.name, out.name])


def test_the_list_and_what_to_paste_name_every_client_and_part(home: Path) -> None:
    screen = Screen()

    show_list(CLIENTS, screen)
    for client in CLIENTS.values():
        show(client, EDGE, os.environ, screen)

    assert all(client.title in screen.text for client in CLIENTS.values())
    assert all(EDGE.fill(part) in screen.text for c in CLIENTS.values() for part in c.parts)
    assert "Claude Code begins with about 18000 tokens of its own" in screen.text


def test_toml_that_a_merge_would_change_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picospec.client_settings._set", lambda *_: None)

    with pytest.raises(NotMergeable):
        merged("toml", "a = 1\n", "b = 2\n")
