"""The start of a Ray cluster: a node that comes too late is ended and started again."""

from __future__ import annotations

import socket
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from overtone.clusters import STARTS, cluster
from overtone.errors import UsageError

TOO_LATE = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Node:
    """A node whose constructor may come too late."""

    def __init__(self, ended: list[Node], *, late: bool) -> None:
        self.ended = ended
        if late:
            raise Exception(TOO_LATE)

    def kill_all_processes(self, *, check_alive: bool, allow_graceful: bool) -> None:
        self.ended.append(self)


class Context:
    """What `ray.init` returns."""

    def __init__(self) -> None:
        self.address_info = {"address": "127.0.0.1:6379"}


@pytest.fixture
def ended() -> list[Node]:
    """The nodes that were ended."""
    return []


def late_nodes(monkeypatch: pytest.MonkeyPatch, ended: list[Node], late: int) -> list[dict[str, Any]]:
    """Let the first nodes come too late. Returns the options of each start."""
    starts: list[dict[str, Any]] = []

    def init(**options: Any) -> Context:
        starts.append(options)
        Node(ended, late=len(starts) <= late)
        return Context()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return starts


def test_a_node_that_comes_too_late_is_ended_and_started_again(
    monkeypatch: pytest.MonkeyPatch, ended: list[Node]
) -> None:
    starts = late_nodes(monkeypatch, ended, STARTS - 1)
    with cluster("local", num_cpus=2) as new:
        assert new
    assert len(starts) == STARTS
    assert len(ended) == STARTS - 1
    assert all(options["num_cpus"] == 2 and options["address"] == "local" for options in starts)


def test_a_cluster_that_never_starts_is_said_plainly(monkeypatch: pytest.MonkeyPatch, ended: list[Node]) -> None:
    late_nodes(monkeypatch, ended, STARTS)
    with pytest.raises(UsageError, match=r"its node came too late 3 times"), cluster("local"):
        pass
    assert len(ended) == STARTS


@pytest.mark.parametrize("address", ["localhost:abc", "anyscale://cloud:1", "10.0.0.1", "ray://head", "[::1"])
def test_texts_that_are_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError, match=r"HOST:PORT.*ray://HOST:PORT"), cluster(address):
        pass


@pytest.mark.parametrize("address", ["here", "auto", None])
def test_a_dead_address_of_the_environment_is_said_at_once(
    address: str | None, monkeypatch: pytest.MonkeyPatch, ended: list[Node]
) -> None:
    """Ray itself would take that address, and try for minutes."""
    starts = late_nodes(monkeypatch, ended, 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(UsageError, match=rf"'127.0.0.1:{port}', which RAY_ADDRESS names"), cluster(address):
            pass
    assert not starts


def test_a_cluster_that_wants_a_token_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> Context:
        raise ray.exceptions.AuthenticationError("no token was found")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UsageError, match="does not let this command in: no token was found"), cluster("auto"):
        pass


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def init(**options: Any) -> Context:
        starts.append(options)
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(UsageError, match=r"no Ray cluster at '10.0.0.1:6379': nobody answers"),
        cluster("10.0.0.1:6379"),
    ):
        pass
    assert len(starts) == 1
