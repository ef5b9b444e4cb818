"""Generate everything that derives from the contract in this directory; `--check` proves that it is fresh.

    gen/millstream/v1/        messages, gRPC stubs and their types
    gen/millstream/wire/v1/   the server's bytes twin of the messages (twin.py)
    gen/buf/validate/         the field rules' own messages, which the contract imports
    envoy/millstream.binpb    the descriptor set for Envoy's transcoder
    docs/openapi.json         what REST takes and gives (apidocs/), with the examples of proto/examples
    docs/reference/           what the gRPC services take and give

It works offline: Google's .proto files come with the googleapis-common-protos and grpcio-tools wheels, and
that of buf.validate, which no wheel carries, is taken out of protovalidate as a descriptor.
"""

import argparse
import filecmp
import json
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

import google.api
import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import _protoc_compiler
from protovalidate._gen.buf.validate import validate_pb

sys.path.insert(0, str(Path(__file__).parent))
from apidocs import Contract, Examples, openapi, reference
from twin import PACKAGE, TWIN_PACKAGE, twin

PROTO = Path(__file__).resolve().parent
ROOT = PROTO.parent
BASELINE = PROTO / "baseline.binpb"
DESCRIPTORS = Path("envoy/millstream.binpb")
OPENAPI = Path("docs/openapi.json")
REFERENCE = Path("docs/reference")
EXAMPLES = PROTO / "examples"
GENERATED = (Path("gen/millstream"), Path("gen/buf"), DESCRIPTORS, OPENAPI, REFERENCE)
VALIDATE = "buf/validate/validate.proto"

# Google's files that the contract may import. It does not import error_details and status, but Envoy needs
# them to understand the details of an error.
GOOGLE = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/protobuf/any.proto",
    "google/protobuf/descriptor.proto",
    "google/protobuf/duration.proto",
    "google/protobuf/empty.proto",
    "google/protobuf/field_mask.proto",
    "google/protobuf/struct.proto",
    "google/protobuf/timestamp.proto",
    "google/protobuf/wrappers.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
FOR_ENVOY = ("google/rpc/error_details.proto", "google/rpc/status.proto")


def main() -> int:
    """Run the command line; the exit code is 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with what is there, change nothing")
    what.add_argument("--baseline", action="store_true", help=f"write {BASELINE.name}, the contract of a release")
    what.add_argument("--image", type=Path, metavar="FILE", help="write an image for buf lint and buf breaking")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millstream-gen-") as scratch:
        if arguments.image or arguments.baseline:
            _write_image(arguments.image or BASELINE, Path(scratch))
            return 0
        fresh = Path(scratch) / "fresh"
        _generate(fresh, Path(scratch))
        if arguments.check:
            return _report(_differences(fresh))
        _install(fresh)
    return 0


def _generate(target: Path, scratch: Path) -> None:
    """Write all of GENERATED below `target`."""
    gen = target / "gen"
    gen.mkdir(parents=True)
    (target / DESCRIPTORS).parent.mkdir(parents=True)
    dependencies = _dependencies(scratch)
    contract = _contract_files()
    plugins = [f"--plugin=protoc-gen-{name}={_script(f'protoc-gen-{name}')}" for name in ("mypy", "mypy_grpc")]
    messages = [f"--python_out={gen}", f"--mypy_out=quiet:{gen}"]
    services = [f"--grpc_python_out={gen}", f"--mypy_grpc_out=quiet:{gen}"]
    sources = [f"--descriptor_set_in={dependencies}", f"--proto_path={PROTO}"]

    _protoc(*sources, *plugins, *messages, VALIDATE, *contract)
    _protoc(*sources, *plugins, *services, *[name for name in contract if name.endswith("_service.proto")])
    _protoc(*sources, "--include_imports", f"--descriptor_set_out={target / DESCRIPTORS}", *contract, *FOR_ENVOY)

    twins = twin(FileDescriptorSet.FromString((target / DESCRIPTORS).read_bytes()))
    twin_set = scratch / "twin.binpb"
    twin_set.write_bytes(twins.SerializeToString(deterministic=True))
    names = [file.name for file in twins.file if file.package == TWIN_PACKAGE]
    _protoc(f"--descriptor_set_in={twin_set}", *plugins, *messages, *names)
    for package in (PACKAGE, TWIN_PACKAGE):
        # A namespace package is typed where the marker stands, not above it.
        (gen / package.replace(".", "/") / "py.typed").touch()
    _document(target, scratch)


def _document(target: Path, scratch: Path) -> None:
    """Write the documentation of the API."""
    image = scratch / "documented.binpb"
    _write_image(image, scratch)
    contract = Contract(image.read_bytes())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    document = openapi(contract, Examples(EXAMPLES), version)
    (target / REFERENCE).mkdir(parents=True)
    (target / OPENAPI).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for name, page in reference(contract).items():
        (target / REFERENCE / name).write_text(page)


def _contract_files() -> list[str]:
    files = sorted(str(path.relative_to(PROTO)) for path in (PROTO / PACKAGE.replace(".", "/")).glob("*.proto"))
    if not files:
        raise SystemExit(f"no .proto file in {PROTO / PACKAGE.replace('.', '/')}")
    return files


def _dependencies(scratch: Path) -> Path:
    """Compile everything that the contract may import into one descriptor set and return its path."""
    path = scratch / "dependencies.binpb"
    (packages,) = {Path(entry).parent.parent for entry in google.api.__path__}
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    _protoc(
        f"--proto_path={packages}",
        f"--proto_path={well_known}",
        "--include_imports",
        f"--descriptor_set_out={path}",
        *GOOGLE,
    )
    files = FileDescriptorSet.FromString(path.read_bytes())
    files.file.append(FileDescriptorProto.FromString(validate_pb._DESC.proto.to_binary()))  # noqa: SLF001 (there is no public way to it)
    path.write_bytes(files.SerializeToString(deterministic=True))
    return path


def _write_image(target: Path, scratch: Path) -> None:
    """Write the contract as a buf image: a descriptor set with comments, whose imports are marked as such."""
    _protoc(
        f"--descriptor_set_in={_dependencies(scratch)}",
        f"--proto_path={PROTO}",
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={target}",
        *_contract_files(),
    )
    image = FileDescriptorSet.FromString(target.read_bytes())
    imports = [file for file in image.file if file.package != PACKAGE]
    own = [file for file in image.file if file.package == PACKAGE]
    # buf's own field 8042 of a file, `{is_import: true}`: lint and breaking then leave imported files alone.
    mark = FileDescriptorProto.FromString(b"\xd2\xf6\x03\x02\x08\x01")
    for file in imports:
        file.MergeFrom(mark)
    target.write_bytes(FileDescriptorSet(file=[*imports, *own]).SerializeToString(deterministic=True))


def _protoc(*arguments: str) -> None:
    # The compiler itself: `python -m grpc_tools.protoc` adds an include path that hides the descriptor set.
    if _protoc_compiler.run_main([argument.encode() for argument in ("protoc", *arguments)]) != 0:
        raise SystemExit("protoc failed")


def _script(name: str) -> Path:
    return Path(sys.executable).parent / name


def _files(root: Path) -> set[Path]:
    return {
        path.relative_to(root)
        for top in GENERATED
        for path in ([root / top] if (root / top).is_file() else (root / top).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _differences(fresh: Path) -> list[str]:
    here, there = _files(ROOT), _files(fresh)
    lines = [f"missing: {path}" for path in sorted(there - here)]
    lines += [f"left over: {path}" for path in sorted(here - there)]
    lines += [
        f"stale: {path}" for path in sorted(here & there) if not filecmp.cmp(ROOT / path, fresh / path, shallow=False)
    ]
    return lines


def _report(differences: list[str]) -> int:
    for line in differences:
        print(line, file=sys.stderr)
    if differences:
        print("generated code is not fresh: run `make gen` and commit the result", file=sys.stderr)
    return 1 if differences else 0


def _install(fresh: Path) -> None:
    """Replace what is there by what is fresh, touching only files that differ (mtimes stay for the tools)."""
    for path in _files(ROOT) - _files(fresh):
        (ROOT / path).unlink()
    for path in _files(fresh):
        target = ROOT / path
        if not target.exists() or not filecmp.cmp(target, fresh / path, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / path, target)


if __name__ == "__main__":
    sys.exit(main())
