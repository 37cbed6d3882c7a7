"""The contract of channels, within a process and by a folder; by Redis in tests/services."""

import os

import pytest

from control.contract import CHECKS
from control.runs import KEYS, refusal
from esper.configs import RedisConfig
from esper.control import FolderChannel, Post
from esper.control.redis import RedisChannel
from esper.control.seal import MAX_BYTES, opened
from esper.errors import ChannelError


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["post", "folder"])
def test_channels(kind, check, tmp_path):
    post = Post()
    check(post.end if kind == "post" else lambda inbox: FolderChannel(tmp_path, inbox))


def test_what_is_no_message_is_left_alone(tmp_path):
    inbox = tmp_path / "controller"
    inbox.mkdir()
    (inbox / "0.part").write_bytes(b"half a message")
    (inbox / "1.msg").mkdir()
    (inbox / "2.msg").symlink_to("/etc/hostname")
    os.mkfifo(inbox / "3.msg")
    (inbox / "4.msg").write_bytes(b"whole")
    end = FolderChannel(tmp_path, "controller")
    assert (end.receive(0), end.receive(0)) == (b"whole", None)


def test_of_what_is_too_large_no_more_is_read_than_tells(tmp_path):
    end = FolderChannel(tmp_path, "controller")
    end.send("controller", b"x" * (10 * MAX_BYTES))
    message = end.receive(0)
    assert len(message) == MAX_BYTES + 1 and refusal(opened, message, "controller decides", KEYS) == "oversized"


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "taken").write_text("a file")
    end = FolderChannel(tmp_path / "taken", "run-1")
    with pytest.raises(ChannelError, match="cannot put a message into"):
        end.send("controller", b"")
    with pytest.raises(ChannelError, match="cannot look into"):
        end.receive(0)


def test_an_empty_inbox_goes_when_its_end_is_closed(tmp_path):
    end = FolderChannel(tmp_path, "run-1")
    end.close()  # it was never written to
    end.send("run-1", b"a late answer")
    end.close()
    assert end.receive(0) == b"a late answer"
    end.close()
    assert list(tmp_path.iterdir()) == []


def test_a_password_that_redis_does_not_take_names_the_fields(monkeypatch):
    redis = pytest.importorskip("redis")
    channel = RedisChannel(RedisConfig(password="0123-secret"), "controller")

    def refuse(*_):
        raise redis.AuthenticationError("invalid username-password pair")

    monkeypatch.setattr(channel._client, "eval", refuse)
    with pytest.raises(ChannelError, match=r"correct redis\.username and redis\.password") as error:
        channel.receive(0)
    assert "0123-secret" not in str(error.value)
