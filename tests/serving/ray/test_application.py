"""Arguments of Serve's application, and plans of replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone.errors import UsageError
from overtone.serving.errors import AccessError, OverloadError, UnknownModelError
from overtone.serving.ray import app
from overtone.serving.ray.cluster import ReplicaPlan
from overtone.serving.ray.messages import failure_of
from overtone.serving.settings import ServerSettings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modle": "base.nemo"}, r"'modle' is no argument\. Did you mean 'model'"),
        ({"replicas": "many"}, "replicas is 'many'; int is needed"),
        ({"replicas": "0"}, "0 replicas: one or more is needed"),
        ({"replicas": "3", "most": "2"}, "At most 2 replicas, but 3 to begin with"),
        ({"tokens": "tokens.yaml"}, "hold a request's body before its token is looked at"),
    ],
)
def test_arguments_that_do_not_fit_are_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        app(arguments)


def test_an_application_is_made_of_texts_and_of_values() -> None:
    assert app({"model": "base.nemo", "adapters": "adapters", "replicas": "2", "cpus": 0.5, "fronts": 2}) is not None
    assert app({"tokens": "tokens.yaml", "behind_proxy": "yes"}) is not None


def test_a_plan_has_another_version_where_replicas_must_be_replaced_and_not_where_they_are_only_more() -> None:
    plan = ReplicaPlan(settings=ServerSettings(model="a.nemo"))
    assert plan.version == ReplicaPlan(settings=ServerSettings(model="a.nemo"), replicas=2, most=5, busy=9.0).version
    assert plan.version != ReplicaPlan(settings=ServerSettings(model="b.nemo")).version
    assert plan.version != ReplicaPlan(settings=ServerSettings(model="a.nemo", adapters=Path("adapters"))).version


@pytest.mark.parametrize(
    "error",
    [
        OverloadError("full", retry_after=3.0),
        UnknownModelError("x", "a, b"),
        AccessError("no", fault="rate", retry_after=2.0),
    ],
)
def test_an_error_arrives_as_it_was(error: Any) -> None:
    arrived = failure_of(error).error()
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
