"""Keys come from the environment or the keyring and are shown nowhere."""

import io
import traceback

import keyring
import pytest
from keyring.backend import KeyringBackend
from servers.openai_server import OpenAIServer, error

from md_trl.records import Question
from md_trl.sampling import sample
from md_trl.sampling.api_keys import find_key
from md_trl.sampling.engines.openai import OpenAIEngine
from md_trl.store import Store


URL = "https://api.example.org/v1"


class MemoryKeyring(KeyringBackend):
    priority = 1

    def __init__(self):
        super().__init__()
        self.kept = {}

    def get_password(self, service, username):
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        self.kept[service, username] = password


class NoKeyring(MemoryKeyring):
    def get_password(self, service, username):
        raise keyring.errors.NoKeyringError


@pytest.fixture
def ring(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before, ring = keyring.get_keyring(), MemoryKeyring()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


def terminal(monkeypatch, is_terminal):
    stdin = io.StringIO()
    stdin.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stdin", stdin)


def test_environment_comes_first(ring, monkeypatch):
    ring.set_password("md_trl", "api.example.org", "sk-ring")
    assert find_key(URL) == "sk-ring"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    assert find_key(URL) == "sk-environment"


def test_the_user_is_asked_once(ring, monkeypatch):
    asked = []
    monkeypatch.setattr("getpass.getpass", lambda text: asked.append(text) or " sk-typed ")
    terminal(monkeypatch, False)
    with pytest.raises(ValueError, match="No key for .*OPENAI_API_KEY.*keyring set md_trl api.example.org"):
        find_key(URL)
    assert not asked
    terminal(monkeypatch, True)
    assert find_key(URL) == find_key(URL) == "sk-typed"
    assert asked == ["Key for api.example.org, to be kept in the keyring: "]
    assert ring.kept == {("md_trl", "api.example.org"): "sk-typed"}


def test_a_machine_without_a_keyring(ring):
    keyring.set_keyring(NoKeyring())
    with pytest.raises(ValueError, match="No key for"):
        find_key(URL)


def test_a_server_on_this_machine_needs_none(ring):
    for url in ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1"):
        assert find_key(url) == "none"


def test_tracebacks_do_not_show_the_key(tmp_path, monkeypatch):
    """Not even tracebacks that include the values of local variables."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    shown = []
    with OpenAIServer(fault=lambda number, body: error(401, "sk-secret-of-mine is wrong")) as server:
        engine = OpenAIEngine("m", server.url)
        questions = [Question("svamp/train/1", "svamp", "train", "What?", "1")]
        with Store(tmp_path / "t.db") as store:
            try:
                sample(questions, ["cot"], 1, engine, store, lambda q, p: q.question, progress=False)
            except ValueError as stop:
                shown += traceback.TracebackException.from_exception(stop, capture_locals=True).format()
        monkeypatch.delenv("OPENAI_API_KEY")
        try:
            key = find_key(server.url.replace("127.0.0.1", "192.0.2.1"))
        except ValueError as stop:
            shown += traceback.TracebackException.from_exception(stop, capture_locals=True).format()
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
        key = find_key(URL)
        assert key == "sk-secret-of-mine" and "sk-" not in repr(key) and "sk-" not in repr({"key": key})
        assert server.keys == {"Bearer sk-secret-of-mine"}
    text = "".join(shown)
    assert "refuses the key" in text and "engine = " in text
    assert "sk-secret" not in text.replace('monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")', "")
