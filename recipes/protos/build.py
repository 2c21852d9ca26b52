"""The vendored .proto files -> overtone/serving/riva/protos/riva.binpb, the descriptor set that the server loads.

    python recipes/protos/build.py            write it
    python recipes/protos/build.py --check    exit code 1 if the committed file differs

Needs grpcio-tools (1.85.1 made the committed file), in whatever environment: Overtone itself never needs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

PROTOS = Path(__file__).resolve().parents[2] / "overtone" / "serving" / "riva" / "protos"
FILES = ("riva/proto/riva_asr.proto", "riva/proto/health.proto")
OUTPUT = PROTOS / "riva.binpb"


def compiled() -> FileDescriptorSet:
    """The vendored files and what they import, without comments and positions."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "set.binpb"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_imports"]
        subprocess.run([*command, f"--descriptor_set_out={output}", *FILES], check=True)
        return FileDescriptorSet.FromString(output.read_bytes())


def add_runtime_config(files: FileDescriptorSet) -> None:
    """`map<string, string> runtime_config = 3` of StreamingRecognizeRequest, as protoc would have written it."""
    asr = next(file for file in files.file if file.name == FILES[0])
    request = next(message for message in asr.message_type if message.name == "StreamingRecognizeRequest")
    kinds = FieldDescriptorProto
    entry = request.nested_type.add(name="RuntimeConfigEntry")
    entry.options.map_entry = True
    for number, name in enumerate(("key", "value"), start=1):
        entry.field.add(
            name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_STRING, json_name=name
        )  # fmt: skip
    request.field.add(
        name="runtime_config",
        number=3,
        label=kinds.LABEL_REPEATED,
        type=kinds.TYPE_MESSAGE,
        type_name=".nvidia.riva.asr.StreamingRecognizeRequest.RuntimeConfigEntry",
        json_name="runtimeConfig",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    arguments = parser.parse_args()
    files = compiled()
    add_runtime_config(files)
    data = files.SerializeToString(deterministic=True)
    if arguments.check:
        return int(OUTPUT.read_bytes() != data)
    OUTPUT.write_bytes(data)
    print(f"{OUTPUT.name}: {len(data)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
