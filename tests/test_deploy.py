"""The files in deploy/: their commands are understood, their ports and probes are those of the server."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("starlette", reason="the serving extra is not installed")

from overtone.cli import serve as command
from overtone.serving.app import health_routes

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


def parsed(words: list[str]) -> argparse.Namespace:
    """Options of `overtone serve`. A word that it does not know ends the test."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    return parser.parse_args(words)


def entrypoint() -> list[str]:
    """Words of the container's command after `overtone serve`."""
    lines = re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert lines is not None
    words: list[str] = json.loads(lines[1])
    assert words[:2] == ["overtone", "serve"]
    return words[2:]


def documents(name: str) -> dict[str, Any]:
    """Documents of a YAML file by their kind, or by the file's name."""
    found = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    return {document.get("kind", name): document for document in found}


def paths_of_health() -> set[str]:
    pages: Any = type("Pages", (), dict.fromkeys(("live", "ready", "metrics")))
    return {route.path for route in health_routes(pages)}  # type: ignore[attr-defined]


def test_the_container() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    options = parsed(entrypoint())
    exposed = re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)
    assert exposed is not None
    ports = {options.http_port, options.grpc_port, options.health_port}
    assert set(map(int, exposed[1].split())) == ports
    health = re.search(r"http://127\.0\.0\.1:(\d+)(/\S+)'", text)
    assert health is not None
    assert int(health[1]) == options.health_port
    assert health[2] in paths_of_health()
    for source in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {name for source in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for name in source.split()}
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}


def test_compose() -> None:
    service = documents("compose.yaml")["compose.yaml"]["services"]["overtone"]
    options = parsed([*entrypoint(), *service["command"]])
    assert {int(str(port).rpartition(":")[2]) for port in service["ports"]} == {
        options.http_port, options.grpc_port, options.health_port,
    }  # fmt: skip
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > options.grace
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_kubernetes() -> None:
    found = documents("kubernetes.yaml")
    pod = found["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    options = parsed([*entrypoint(), *container["args"]])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": options.http_port, "grpc": options.grpc_port, "health": options.health_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths_of_health()
        assert container[probe]["httpGet"]["port"] == "health"
    assert pod["spec"]["terminationGracePeriodSeconds"] > options.grace
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {*map(str, options.adapters), str(options.tokens.parent)} <= mounted
    assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["spec"]["volumes"]}
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in paths_of_health()
    assert all(port["targetPort"] in ports for port in found["Service"]["spec"]["ports"])
    assert found["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_systemd() -> None:
    text = (DEPLOY / "overtone.service").read_text()
    start = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert start is not None
    words = shlex.split(start[1])
    options = parsed(words[words.index("serve") + 1 :])
    stop = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert stop is not None
    assert int(stop[1]) > options.grace
    assert re.search(r"^Restart=always$", text, re.MULTILINE)
    assert re.search(r"^ExecReload=.*-HUP", text, re.MULTILINE)


def test_systemd_understands_the_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(DEPLOY / "overtone.service")], capture_output=True, text=True, check=False
    )
    faults = [line for line in done.stderr.splitlines() if "is not executable" not in line and "overtone" in line]
    assert not faults


def test_the_health_check_is_python() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    words = re.search(r"CMD (\[.*\])$", text, re.MULTILINE)
    assert words is not None
    ast.parse(json.loads(words[1])[2])
