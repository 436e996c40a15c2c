"""The gRPC modules that are committed, and what they are made of."""

from pathlib import Path

import pytest
from grpc_tools import protoc

PROTO = "schemas/proto/millstream/v1/rank.proto"
REPOSITORY = Path(__file__).parents[2]
#: As in the Makefile's target `proto`.
OUTPUTS = ("python", "pyi", "grpc_python")


@pytest.mark.parametrize("name", ["rank_pb2.py", "rank_pb2.pyi", "rank_pb2_grpc.py"])
def test_what_is_committed_is_what_the_proto_makes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: `make proto` was run after the last change."""
    monkeypatch.chdir(REPOSITORY)
    code = protoc.main(["protoc", "--proto_path=.", *(f"--{output}_out={tmp_path}" for output in OUTPUTS), PROTO])
    made = tmp_path / Path(PROTO).parent / name

    assert (code, made.read_text()) == (0, (REPOSITORY / PROTO).with_name(name).read_text())
