"""Code-first runs: what starts one, and what it remembers."""

from millstream.application.views.code_runs import NewCodeRun, StartedRun
from millstream.domain.struct_wire import decode_value, encode_struct
from millstream.transport.mapping.json import labels_text
from millstream.transport.mapping.runs import put_error
from millstream.transport.mapping.times import duration_us
from millstream.wire.v1 import run_service_pb2


def new_code_run(message: run_service_pb2.StartRunRequest) -> NewCodeRun:
    """The code-first run to start."""
    return NewCodeRun(
        workflow=message.workflow,
        version=message.version,
        input=message.input,
        run_id=message.run_id.lower(),
        queue=message.queue or "default",
        labels=labels_text(dict(message.labels)) if message.labels else "",
        signal=(message.signal, message.signal_value) if message.signal else None,
        priority=message.priority,
        timeout_us=duration_us(message.run_timeout) if message.HasField("run_timeout") else 0,
    )


def put_started(result: StartedRun) -> run_service_pb2.StartRunResponse:
    """Write a run as it stands, with its output where it has ended well."""
    run = result.run
    out = run_service_pb2.StartRunResponse(started=result.started)
    out.run_id = run.id
    out.status = int(run.status)  # type: ignore[assignment]
    out.completed = result.completed
    if result.output:
        out.output = result.output
    put_error(out.error, run.error_code, run.error_message)
    return out


def state_struct(state: dict[str, bytes]) -> bytes:
    """What a run remembers, as a Struct in wire form; null stands for what it forgot."""
    values = {name: decode_value(value) if value else None for name, value in state.items()}
    return encode_struct({name: value for name, value in values.items() if value is not None})
