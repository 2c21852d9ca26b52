"""Options of commands that run on a Ray cluster, and what they do there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from overtone.cli.arguments import attention_options, number, whole_number
from overtone.clusters import HERE, check_ray
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.models.asr_model import AsrModel
    from overtone.serving.ray.cluster import ReplicaPlan
    from overtone.serving.server import Started
    from overtone.serving.settings import BaseSettings, ServerSettings

    Own = TypeVar("Own", ServerSettings, BaseSettings)


def add_ray(parser: argparse.ArgumentParser, purpose: str) -> argparse._ArgumentGroup:
    """`--ray` in a group of its own. purpose: of the command there."""
    group = parser.add_argument_group("Ray cluster")
    group.add_argument(
        "--ray",
        nargs="?",
        const=HERE,
        metavar="ADDRESS",
        help=f"{purpose}; auto is this machine's cluster (default: that one, or a new one for the time of the command)",
    )
    return group


def add_replicas(parser: argparse.ArgumentParser) -> None:
    """Options of `overtone serve` on a cluster."""
    group = add_ray(parser, "recognise on replicas of the model in the Ray cluster of this address")
    group.add_argument("--replicas", type=whole_number, default=1, metavar="N", help="replicas (default: 1)")
    group.add_argument(
        "--max-replicas",
        type=whole_number,
        default=0,
        metavar="N",
        help="replicas at most: they are added as requests queue up, and taken away (default: none is added)",
    )
    group.add_argument(
        "--replica-requests",
        type=number(above=0),
        default=24.0,
        metavar="N",
        help="requests, waiting or running, for each replica, beyond which --max-replicas adds one (default: 24)",
    )
    group.add_argument(
        "--scale-up-seconds",
        type=number(at_least=0),
        default=30.0,
        metavar="S",
        help="time with more requests than that until a replica is added (default: 30)",
    )
    group.add_argument(
        "--scale-down-seconds",
        type=number(at_least=0),
        default=300.0,
        metavar="S",
        help="time with fewer until one is taken away; it finishes what it has, within --grace (default: 300)",
    )
    group.add_argument(
        "--surge",
        type=whole_number,
        default=0,
        metavar="PERCENT",
        help="replicas that an update may add before it takes old ones away, as a share of them; 100 updates a single "
        "one without a break, where the cluster has room for two (default: 0)",
    )
    group.add_argument(
        "--replica-cpus", type=number(above=0), default=1.0, metavar="N", help="cores of a replica (default: 1)"
    )
    group.add_argument(
        "--replica-gpus",
        type=number(at_least=0),
        default=0.0,
        metavar="N",
        help="GPUs of a replica; 0.5: two share one (default: 0)",
    )


def serve_there(arguments: argparse.Namespace, settings: ServerSettings, demo: Path | None, started: Started) -> int:
    """Serve with replicas on a Ray cluster; returns the exit code. demo: adapter of each model. Raises UsageError."""
    check_ray()
    with fast_imports():
        from overtone.serving.metrics import set_up_logs, take_down
        from overtone.serving.ray.front import serve_on_cluster

    handler = set_up_logs(arguments.log)
    try:
        plan = replica_plan(arguments, settings, demo)
        finished = serve_on_cluster(plan, address=arguments.ray, started=started)
    finally:
        take_down(handler)
    return 0 if finished else 1


def replica_plan(arguments: argparse.Namespace, settings: ServerSettings, demo: Path | None) -> ReplicaPlan:
    """Plan of the replicas. demo: adapter that each model gets. Raises UsageError."""
    from overtone.inference.on_cluster import whole_path
    from overtone.serving.ray.cluster import ReplicaPlan

    def whole(own: Own) -> Own:
        """Settings of a base with paths from the root."""
        adapters = None if own.adapters is None else own.adapters.absolute()
        return replace(own, model=whole_path(own.model), adapters=adapters)

    return ReplicaPlan(
        settings=replace(whole(settings), more=tuple(map(whole, settings.more))),
        load=loader(arguments, None if demo is None else demo.absolute()),
        replicas=arguments.replicas,
        most=arguments.max_replicas,
        busy=arguments.replica_requests,
        scale_up_seconds=arguments.scale_up_seconds,
        scale_down_seconds=arguments.scale_down_seconds,
        surge=arguments.surge,
        cpus=arguments.replica_cpus,
        gpus=arguments.replica_gpus,
    )


def loader(arguments: argparse.Namespace, demo: Path | None) -> Callable[[ServerSettings], AsrModel]:
    """Function that gives a replica its model."""
    return partial(
        load_served, device=arguments.device, decoder=arguments.decoder, demo=demo, **attention_options(arguments)
    )


def load_served(settings: ServerSettings, *, device: str, demo: Path | None, **options: Any) -> AsrModel:
    """Model of the settings in a replica, on its device. Raises CheckpointError and UsageError."""
    from overtone.cli.models import load

    model = load(settings.model, device, **options)
    if demo is not None:
        model.adapters.load(demo)
    return model
