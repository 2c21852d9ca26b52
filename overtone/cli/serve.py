"""One base and many adapters at work: Riva's gRPC interface, OpenAI's HTTP interface and Riva's realtime sessions.

Every request chooses its own adapter by the model's name: `base+medical`, or just `medical`. The folder of adapters
is watched: a new adapter is in service a moment later. A signal (Ctrl-C) ends the server once what runs is done."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.cli.arguments import add_attention, add_computing, add_decoder, attention_options, number, port, whole
from overtone.cli.bases import add_bases, base_settings, check_options
from overtone.cli.cluster import add_replicas, serve_there
from overtone.cli.models import demo_adapter, learning_copy, load_demo
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.serving.base import ServedBase
    from overtone.serving.server import Addresses, Server, ServerSettings

LOG = logging.getLogger("overtone.serving.server")

PACKAGES = {
    "fsspec": "fsspec",
    "grpc": "grpcio",
    "google.protobuf": "protobuf",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
"""Packages of the extra `overtone[serve]`, by the name that is imported."""
OPTIONAL = ("grpcio-reflection",)
"""Packages of the extra without which the server only lacks a service."""

EXAMPLES = """examples:
  overtone serve --demo
  overtone serve base.nemo --adapters adapters/
  overtone serve base.nemo --adapters adapters/ --host 0.0.0.0 --tokens tokens.yaml --tls-cert tls.crt --tls-key tls.key
  overtone serve base.nemo --adapters adapters/ --ray --replicas 3
  overtone serve en=english.nemo de=german.nemo --adapters en=english/ --adapters de=german/ --language de=de-DE

Then, for example:
  curl http://127.0.0.1:9000/v1/audio/transcriptions -F file=@memo.wav -F model=medical"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bases(parser)
    parser.add_argument(
        "--demo",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="with the adapter that `overtone demo` trained, in that folder or the newest overtone_demo*/ here",
    )
    parser.add_argument(
        "--learn",
        action="store_true",
        help="let adapters of the folder learn from corrections; with --tokens, those that a tenant's entry names",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--grpc-port", type=port, default=50051, metavar="PORT", help="of gRPC; 0: any (default: 50051)"
    )
    parser.add_argument("--http-port", type=port, default=9000, metavar="PORT", help="of HTTP; 0: any (default: 9000)")
    add_names(parser)
    add_security(parser)
    add_streams(parser)
    parser.add_argument(
        "--capacity", type=whole, default=64, metavar="N", help="adapters in the model at a time (default: 64)"
    )
    parser.add_argument("--max-batch", type=whole, default=16, metavar="N", help="rows of a forward (default: 16)")
    parser.add_argument(
        "--max-queue", type=whole, default=256, metavar="N", help="maximum queued requests (default: 256)"
    )
    parser.add_argument(
        "--max-seconds",
        type=number(above=0),
        default=7200.0,
        metavar="SECONDS",
        help="of one recording or stream (default: 7200)",
    )
    parser.add_argument(
        "--max-megabytes", type=whole, default=384, metavar="N", help="of one recording or stream (default: 384)"
    )
    parser.add_argument(
        "--grace",
        type=number(at_least=0),
        default=30.0,
        metavar="SECONDS",
        help="for what runs when the server is told to end (default: 30)",
    )
    parser.add_argument("--log", choices=("json", "text"), default="json", help="form of the log (default: json)")
    add_computing(parser)
    add_decoder(parser)
    add_attention(parser)


def add_names(parser: argparse.ArgumentParser) -> None:
    """Options of names, hints and monitoring."""
    parser.add_argument(
        "--alias",
        action="append",
        type=alias,
        default=[],
        metavar="NAME=MODEL",
        help="another name of a model, such as whisper-1=medical; may be given several times",
    )
    parser.add_argument(
        "--prompt-boost",
        type=number(at_least=0),
        default=0.0,
        metavar="BOOST",
        help="makes the words in the prompt of OpenAI's requests likelier, by 4 for example (default: 0, not at all)",
    )
    parser.add_argument(
        "--health-port",
        type=port,
        metavar="PORT",
        help="of health and metrics alone, in clear and without client certificates; 0: any (default: none)",
    )


def add_security(parser: argparse.ArgumentParser) -> None:
    """Options of tokens, TLS and origins."""
    group = parser.add_argument_group("security")
    group.add_argument(
        "--tokens", type=Path, metavar="FILE", help="tenants, hashes of their tokens, and their adapters, as YAML"
    )
    group.add_argument(
        "--quotas", type=Path, metavar="FILE", help="rates, places and priorities of adapters, for all tenants, as YAML"
    )
    group.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="holds the token that opens the administration"
    )
    group.add_argument(
        "--adapter-source",
        action="append",
        default=[],
        metavar="URI",
        help="beginning of what POST /v1/load_lora_adapter may fetch, as s3://bucket/adapters/; may be repeated",
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate (PEM), for both ports")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (PEM)")
    group.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="clients must show a certificate signed by this one (mTLS)"
    )
    group.add_argument(
        "--allow-origin",
        "--origin",
        dest="origin",
        action="append",
        default=[],
        metavar="URL",
        help="a web site whose pages may use the server (https://example.org; * is all); may be given several times",
    )
    group.add_argument(
        "--host-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which requests may call the server (asr.example.org), besides localhost and IP addresses; may "
        "be given several times",
    )


def add_streams(parser: argparse.ArgumentParser) -> None:
    """Options of streams, and of replicas."""
    group = parser.add_argument_group("streams")
    group.add_argument(
        "--stream",
        type=context,
        default="0.8/1.6/1.6",
        metavar="CHUNK/LEFT/RIGHT",
        help="seconds of a stream that are computed at a time, and of context around them; with less on the right, "
        "results come sooner and are less accurate (default: 0.8/1.6/1.6)",
    )
    group.add_argument(
        "--finals",
        choices=("whole", "chunks"),
        default="whole",
        help="whole: an utterance of a stream is computed once more in one piece when it has ended; chunks: it is not, "
        "which takes a fifth less computation and loses accuracy (default: whole)",
    )
    group.add_argument(
        "--stream-mode",
        choices=("auto", "buffered", "cache_aware"),
        default="auto",
        help="cache_aware: each chunk of a stream is computed once, with the model's own chunks and context in place "
        "of these; auto: that for models that were trained for it (default: auto)",
    )
    add_replicas(parser)


def alias(text: str) -> tuple[str, str]:
    """Name and the model that it means."""
    name, equals, model = text.partition("=")
    if not equals or not name.strip() or not model.strip() or name.strip() == model.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME=MODEL, such as whisper-1=medical")
    return name.strip(), model.strip()


def aliases_of(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Aliases by name. Raises UsageError for a name that has two meanings."""
    aliases: dict[str, str] = {}
    for name, model in pairs:
        if aliases.setdefault(name, model) != model:
            raise UsageError(f"The alias '{name}' is given twice: '{aliases[name]}' and '{model}'. Leave one out.")
    return aliases


def context(text: str) -> tuple[float, float, float]:
    """Seconds of chunk, left and right context."""
    try:
        chunk, left, right = map(float, text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form 0.8/1.6/1.6") from None
    return chunk, left, right


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit code. Raises UsageError for options that do not go together."""
    check_installed()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server is there, which reads its files again
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C code writes lines of its own to standard error
    with fast_imports():
        from overtone.cli.models import load, quiet_libraries
        from overtone.models.attention import attention_text
        from overtone.serving.metrics import set_up_logs, take_down
        from overtone.serving.server import serve

    quiet_libraries()
    settings = settings_of(arguments)
    is_for_people = arguments.log == "text" or sys.stderr.isatty()
    check_options(settings, demo=arguments.demo is not None)
    demo = None if arguments.demo is None else demo_adapter(arguments.demo)
    if settings.learn and arguments.ray is not None:
        raise UsageError("--learn does not go with --ray; let adapters learn with `overtone learn`.")
    if settings.learn and demo is not None and settings.adapters is None:
        settings, demo = replace(settings, adapters=learning_copy(demo)), None
    started = note_addresses if is_for_people else log_addresses
    if arguments.ray is not None:
        return serve_there(arguments, settings, demo, started)
    models = [
        load(own.model, arguments.device, decoder=arguments.decoder, **attention_options(arguments))
        for own in settings.of_each_base()
    ]
    if demo is not None:
        load_demo(models[0], demo)
    handler = set_up_logs(arguments.log)
    tell = note if is_for_people else LOG.info
    try:
        for model in models:
            if attention := attention_text(model):
                tell(f"{model.name or 'model'} · {attention}")
        finished = serve(settings, model=models[0], more=models[1:], started=started)
    finally:
        take_down(handler)
        gc.collect()  # what sessions have left would be told on standard error when the process ends
    return 0 if finished else 1


def check_installed() -> None:
    """Raises UsageError, naming the packages of the extra that are missing."""
    missing = [distribution for module, distribution in PACKAGES.items() if not is_installed(module)]
    if missing:
        raise UsageError(
            f"`overtone serve` needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install with: pip install 'overtone[serve]'"
        )


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


def settings_of(arguments: argparse.Namespace) -> ServerSettings:
    """Settings of the server from the command line."""
    from overtone.audio.decode import AudioLimits
    from overtone.serving.engine.engine import EngineSettings
    from overtone.serving.server import ServerSettings
    from overtone.serving.streaming.stream import StreamSettings

    chunk, left, right = arguments.stream
    limits = AudioLimits(max_bytes=arguments.max_megabytes * 2**20, max_seconds=arguments.max_seconds)
    return ServerSettings(
        **base_settings(arguments),
        adapter_sources=tuple(arguments.adapter_source),
        learn=arguments.learn,
        capacity=arguments.capacity,
        aliases=aliases_of(arguments.alias),
        prompt_boost=arguments.prompt_boost,
        host=arguments.host,
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        health_port=arguments.health_port,
        tokens=arguments.tokens,
        quotas=arguments.quotas,
        admin_token_file=arguments.admin_token_file,
        tls_certificate=arguments.tls_cert,
        tls_key=arguments.tls_key,
        client_authority=arguments.client_ca,
        origins=frozenset(origin.rstrip("/") for origin in arguments.origin),
        host_names=frozenset(arguments.host_name),
        compute_dtype=arguments.dtype,
        engine=replace(EngineSettings(), max_batch=arguments.max_batch, max_queue=arguments.max_queue),
        stream=StreamSettings(chunk=chunk, left=left, right=right, finals=arguments.finals, mode=arguments.stream_mode),
        limits=limits,
        grace_seconds=arguments.grace,
    )


def note_addresses(server: Server, addresses: Addresses) -> None:
    """Print the adapters and addresses of a started server."""
    first, *_ = [note_adapters(base) for base in server.served]
    note(f"Riva gRPC  {addresses.grpc}")
    note(f"HTTP       {addresses.http}")
    if addresses.health_port is not None:
        note(f"Health     {addresses.health}")
    note(f"Page       {addresses.http}/")
    note(f"Try        curl {addresses.http}/v1/audio/transcriptions -F file=@recording.wav -F model={first}")


def note_adapters(served: ServedBase) -> str:
    """Print the adapters of a base; returns the name of a model to try."""
    base = served.service.base
    entries = served.store.entries()
    usable = [entry.name for entry in entries if entry.state != "refused"]
    for entry in entries:
        if entry.state == "refused":
            note(f"overtone: adapter '{entry.name}' is refused: {entry.reason}")
    first = f"{base}+{usable[0]}" if usable else base
    more = "" if len(usable) <= 8 else f" and {len(usable) - 8} more"
    note(f"{base} · adapters: {', '.join(usable[:8]) or 'none'}{more}")
    folder = served.settings.adapters
    deeper = [] if entries or folder is None else sorted(path.parent for path in folder.glob("*/**/adapter.yaml"))
    if deeper:
        note(f"The folder {folder} holds no adapter folders itself. Below it are {', '.join(map(str, deeper[:5]))}.")
    return first


def log_addresses(server: Server, addresses: Addresses) -> None:
    """Log the adapters and addresses of a started server, for programs."""
    facts = {"event": "started", "grpc": addresses.grpc, "http": addresses.http}
    if addresses.health_port is not None:
        facts["health"] = addresses.health
    told = []
    for base in server.served:
        names = [entry.name for entry in base.store.entries() if entry.state != "refused"]
        more = "" if len(names) <= 8 else f" and {len(names) - 8} more"
        told.append(f"{base.service.base} · adapters: {', '.join(names[:8]) or 'none'}{more}")
    LOG.info("%s", "; ".join(told), extra={"call": facts})
