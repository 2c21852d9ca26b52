"""Deployment of a base's replicas on a Ray cluster, and the plan that it follows."""

from __future__ import annotations

import hashlib
import json
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import ray
from ray import cloudpickle, serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from overtone.checkpoints.load import load_model
from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.serving.ray.affinity import HOMES
from overtone.serving.ray.replica import Load, Replica
from overtone.serving.ray.router import AffinityRouter
from overtone.serving.settings import ServerSettings
from overtone.version import __version__

APPLICATION = "overtone"
ENGINE = "engine"
SURGE = "max_surge_percent"
"""Serve's option of a plan's surge."""
SCALE = frozenset(("replicas", "most", "busy", "scale_up_seconds", "scale_down_seconds", "surge"))
"""Fields of a plan that change how many replicas there are and how they come and go, not what they are."""
OF_FRONTS = frozenset(
    (
        *("learn", "host", "grpc_port", "http_port", "health_port", "tokens", "quotas", "admin_token_file"),
        *("origins", "host_names", "tls_certificate", "tls_key", "client_authority", "adapter_sources", "max_calls"),
        *("max_requests", "max_connections", "max_channels", "message_seconds", "opening_seconds"),
    )
)
"""Settings that fronts alone heed: fronts that differ in them share replicas."""


def load_plainly(settings: ServerSettings) -> AsrModel:
    """Model of the settings, on the GPU where the replica has one."""
    model = load_model(settings.model)
    return model.to("cuda") if ray.get_gpu_ids() else model


@dataclass(frozen=True, kw_only=True)
class ReplicaPlan:
    """Replicas of a base, or of each base of the settings. Raises UsageError for numbers that make no sense."""

    settings: ServerSettings
    load: Load = load_plainly
    """Gives a replica its model."""
    replicas: int = 1
    """Replicas at the beginning, and always unless `most` is larger."""
    most: int = 0
    """Replicas at most; 0 is as many as `replicas`: nothing is scaled."""
    cpus: float = 1.0
    """Cores of a replica."""
    gpus: float = 0.0
    """GPUs of a replica; half a one lets two share it."""
    busy: float = 24.0
    """Requests, waiting or running, that a replica should have: with more, replicas are added."""
    queue: int = 512
    """Requests that a replica has at most."""
    homes: int = HOMES
    """Replicas that may hold one adapter."""
    stats_seconds: float = 2.0
    """Time between two words of a replica about itself."""
    scale_up_seconds: float = 30.0
    """Time with more than `busy` after which a replica is added."""
    scale_down_seconds: float = 300.0
    """Time with little to do after which a replica is taken away."""
    surge: int = 0
    """Share of the replicas, in percent, that an update may add before it takes old ones away; with 0 it takes some
    away first, so that one replica alone is gone for a while. The cluster needs room for them."""
    health_seconds: float = 10.0
    """Time between two checks of a replica's health."""

    def __post_init__(self) -> None:
        if self.settings.learn:
            raise UsageError("--learn trains in the server that recognises; it does not go with a cluster's replicas.")
        if self.replicas < 1:
            raise UsageError(f"{self.replicas} replicas: one or more is needed.")
        if self.most and self.most < self.replicas:
            raise UsageError(
                f"At most {self.most} replicas, but {self.replicas} to begin with; give the larger second."
            )
        if not self.busy > 0:
            raise UsageError(f"{self.busy:g} requests for each replica: a number above 0 is needed.")
        if self.scale_up_seconds < 0 or self.scale_down_seconds < 0:
            raise UsageError("The seconds after which replicas are added or taken away cannot be negative.")
        if not 0 <= self.surge <= 100:
            raise UsageError(f"A surge of {self.surge} percent: 0 to 100 are allowed.")
        if self.surge and SURGE not in signature(serve.deployment).parameters:
            raise UsageError("A surge needs a newer version of Ray; leave it out, or: pip install --upgrade ray")

    def of_each_base(self) -> tuple[ReplicaPlan, ...]:
        """Plan of the replicas of each base, which differ in their settings alone."""
        return tuple(replace(self, settings=settings) for settings in self.settings.of_each_base())

    @property
    def version(self) -> str:
        """Digest of all that replicas depend on: with the same one, running replicas go on."""
        kept = {name: value for name, value in vars(self).items() if name not in SCALE}
        settings = {name: value for name, value in asdict(self.settings).items() if name not in OF_FRONTS}
        content = {**kept, "settings": settings, "load": load_facts(self.load), "version": __version__}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=plain).encode()).hexdigest()[:16]


def load_facts(load: Any) -> Any:
    """Facts that tell one function of a plan from another, the same in every process for what a module defines."""
    if isinstance(load, partial):
        return [load_facts(load.func), [plain(each) for each in load.args], sorted(load.keywords.items())]
    return hashlib.sha256(cloudpickle.dumps(load)).hexdigest()


def plain(value: Any) -> Any:
    """A value that JSON lacks: sets in order, whatever the process's hashes are, all else as text."""
    return sorted(value) if isinstance(value, frozenset | set) else str(value)


def engine_deployment(plan: ReplicaPlan, name: str = ENGINE) -> Any:
    """Serve's application of the replicas alone, to be run or bound to an ingress. name: of the deployment."""
    settings = plan.settings
    scaling: dict[str, Any] = {"num_replicas": plan.replicas}
    if plan.most > plan.replicas:
        scaling = {
            "num_replicas": None,
            "autoscaling_config": AutoscalingConfig(
                min_replicas=plan.replicas,
                max_replicas=plan.most,
                target_ongoing_requests=plan.busy,
                upscale_delay_s=plan.scale_up_seconds,
                downscale_delay_s=plan.scale_down_seconds,
            ),
        }
    if plan.surge:
        scaling[SURGE] = plan.surge
    deployment = serve.deployment(Replica).options(
        name=name,
        max_ongoing_requests=plan.queue,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter,
            request_router_kwargs={"homes": plan.homes, "max_batch": settings.engine.max_batch},
            request_routing_stats_period_s=plan.stats_seconds,
        ),
        graceful_shutdown_timeout_s=settings.grace_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=plan.health_seconds,
        logging_config={"enable_access_log": False},  # fronts log each request; two lines in a file cost time
        **scaling,
    )
    return deployment.bind(settings, plan.load, plan.version)


def applications_of(plan: ReplicaPlan) -> tuple[tuple[str, str], ...]:
    """Application of Serve and deployment of each base's replicas, where every base has an application of its own.

    So a base whose model or adapters change is replaced without the others.
    """
    bases = plan.of_each_base()
    return tuple((f"{APPLICATION}-{own.settings.base}" if plan.settings.more else APPLICATION, ENGINE) for own in bases)


def deployments_of(plan: ReplicaPlan, application: str) -> tuple[tuple[str, str], ...]:
    """Application and deployment of each base's replicas, where they share one application."""
    others = (f"{ENGINE}-{own.base}" for own in plan.settings.more)
    return tuple((application, name) for name in (ENGINE, *others))


def engine_handle(name: str = ENGINE, application: str = APPLICATION) -> DeploymentHandle[Any]:
    """Handle of running replicas, with a router of its own."""
    return copy(serve.get_deployment_handle(name, application))  # Serve gives all callers of a process the same one
