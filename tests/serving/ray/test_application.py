"""Arguments of Serve's application, and plans of replicas."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone.cli.cluster import replica_plan
from overtone.errors import UsageError
from overtone.serving.engine.queue import Turn
from overtone.serving.errors import AccessError, OverloadError, UnknownModelError
from overtone.serving.ray import app
from overtone.serving.ray.application import with_whole_paths
from overtone.serving.ray.cluster import ReplicaPlan, engine_deployment
from overtone.serving.ray.messages import Job, failure_of
from overtone.serving.recognition.request import RecognitionRequest
from overtone.serving.settings import ServerSettings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modle": "base.nemo"}, r"'modle' is no argument\. Did you mean 'model'"),
        ({"replicas": "many"}, "replicas is 'many'; int is needed"),
        ({"replicas": "0"}, "0 replicas: one or more is needed"),
        ({"replicas": "3", "most": "2"}, "At most 2 replicas, but 3 to begin with"),
        ({"surge": "200"}, "A surge of 200 percent: 0 to 100 are allowed"),
        ({"busy": "0"}, "0 requests for each replica: a number above 0 is needed"),
        ({"bases": "en"}, "'bases' is a list of two or more"),
        ({"bases": [{"base": "en", "model": "a.nemo"}] * 2}, "Two bases are called 'en'"),
        ({"bases": [{"base": "en"}, {"base": "de"}]}, "needs a name and a model"),
        (
            {"bases": [{"base": False, "model": "a"}, {"base": "de", "model": "b"}]},
            "'base' .* is False; a text is needed",
        ),
        ({"bases": [{"base": "en", "model": "a", "language": None}, {}]}, "'language' .* is None; a text is needed"),
        ({"bases": [{"base": "en", "modle": "a"}, {}]}, r"'modle' is nothing of a base\. Did you mean 'model'"),
        (
            {"bases": '[{"base": "en", "model": "a"}, {"base": "de", "model": "b"}]', "adapters": "c"},
            "'adapters' stands",
        ),
        ({"tokens": "tokens.yaml"}, "hold a request's body before its token is looked at"),
    ],
)
def test_arguments_that_do_not_fit_are_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        app(arguments)


def test_an_application_is_made_of_texts_and_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths begin in the folder of the caller; names of models stay."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    for name in ("base.nemo", "tokens.yaml"):
        (tmp_path / name).touch()
    assert app({"model": "base.nemo", "adapters": "adapters", "replicas": "2", "cpus": 0.5, "fronts": 2}) is not None
    assert app({"tokens": "tokens.yaml", "behind_proxy": "yes"}) is not None
    bases = [{"base": "en", "model": "base.nemo"}, {"base": "de", "model": "other", "adapters": "adapters"}]
    plan, *engines = app({"bases": bases})._bound_deployment.init_args
    own = [each.settings for each in plan.of_each_base()]
    assert [(each.base, each.model, each.adapters) for each in own] == [
        ("en", str(tmp_path / "base.nemo"), None), ("de", "other", tmp_path / "adapters"),
    ]  # fmt: skip
    assert [engine._bound_deployment.name for engine in engines] == ["engine", "engine-de"]


def test_relative_paths_begin_in_the_folder_of_the_caller_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.nemo").touch()
    (tmp_path / "quotas.yaml").touch()
    there = with_whole_paths(ServerSettings(model="base.nemo", quotas=Path("quotas.yaml"), tokens=Path("/tokens.yaml")))
    assert (there.model, there.quotas, there.tokens) == (
        str(tmp_path / "base.nemo"), tmp_path / "quotas.yaml", Path("/tokens.yaml"),
    )  # fmt: skip
    for name in ("fundamental", "nvidia/stt_en_conformer_ctc_small"):
        assert with_whole_paths(ServerSettings(model=name)).model == name
    for arguments in (
        {"model": "other.nemo"},
        {"model": "./model"},
        {"model": "a/b/model"},
        {"adapters": "adapters"},
        {"quotas": "../quotas.yaml"},
    ):
        with pytest.raises(UsageError, match=r"there is no such path in .* Give the whole path"):
            app(arguments)


def test_scaling_and_grace_reach_serve() -> None:
    plan = ReplicaPlan(
        settings=ServerSettings(grace_seconds=7.0), most=4, busy=9.0, scale_up_seconds=2.0, scale_down_seconds=3.0,
        surge=50,
    )  # fmt: skip
    deployment = engine_deployment(plan)._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 9.0)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (2.0, 3.0)
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 7.0
    assert deployment._deployment_config.max_surge_percent == 50


def test_the_rank_of_a_call_reaches_the_queue_of_the_replica() -> None:
    assert Job(request=RecognitionRequest(), adapters=("a", "b"), rank=1).call.turn == Turn(1, "a+b")
    assert Job(request=RecognitionRequest(), tenant="anna", rank=-1).call.turn == Turn(-1, "anna")


def test_a_plan_has_another_version_where_replicas_must_be_replaced_and_not_where_they_are_only_more() -> None:
    plan = ReplicaPlan(settings=ServerSettings(model="a.nemo"))
    assert (
        plan.version
        == ReplicaPlan(settings=ServerSettings(model="a.nemo"), replicas=2, most=5, busy=9.0, surge=50).version
    )
    assert plan.version != ReplicaPlan(settings=ServerSettings(model="b.nemo")).version
    assert plan.version != ReplicaPlan(settings=ServerSettings(model="a.nemo", adapters=Path("adapters"))).version


def test_fronts_that_differ_in_what_fronts_alone_heed_share_replicas() -> None:
    own = {"http_port": 1, "host": "0.0.0.0", "tokens": Path("tokens.yaml"), "tls_key": Path("key.pem")}
    plans = [ReplicaPlan(settings=ServerSettings(**options)) for options in ({}, own)]
    assert plans[0].version == plans[1].version


def test_the_version_of_a_plan_is_the_same_in_every_process() -> None:
    """Sets have another order in each."""
    script = (
        "from functools import partial\nfrom overtone.cli.cluster import load_served\n"
        "from overtone.serving.ray.cluster import ReplicaPlan\nfrom overtone.serving.settings import ServerSettings\n"
        "print(ReplicaPlan(settings=ServerSettings(), load=partial(load_served, device='cpu', demo=None)).version)"
    )
    versions = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(versions) == 1


def test_replicas_get_paths_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in another folder than the command."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.nemo").touch()
    settings = ServerSettings(model="base.nemo", adapters=Path("adapters"))
    given = Namespace(
        replicas=1, max_replicas=0, replica_requests=24.0, scale_up_seconds=30.0, scale_down_seconds=300.0, surge=0,
        replica_cpus=1.0, replica_gpus=0.0, device="cpu", decoder=None,
        att_context_size=None, attention=None,
    )  # fmt: skip
    there = replica_plan(given, settings, None).settings
    assert (there.model, there.adapters) == (str(tmp_path / "base.nemo"), tmp_path / "adapters")


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
