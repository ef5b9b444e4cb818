// The contract's messages as plain objects, and the one method that a worker calls.
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";
import { readFileSync } from "node:fs";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** google.protobuf.Value */
export interface Value {
  null_value?: string | number;
  number_value?: number;
  string_value?: string;
  bool_value?: boolean;
  struct_value?: Struct | null;
  list_value?: { values?: Value[] } | null;
}

/** google.protobuf.Struct. Of a descriptor set, the loader takes a map for what it is on the wire: a list of entries. */
export interface Struct {
  fields?: { key: string; value: Value | null }[];
}

export interface Duration {
  seconds: number;
  nanos: number;
}

/** A lease by its fence. */
export interface LeaseRef {
  task_id: string;
  attempt: number;
}

export interface Artifact {
  id: string;
  type: string;
  payload: Struct | null;
}

export interface Lease extends LeaseRef {
  run_id: string;
  kind: string;
  agent: string;
  input: Value | null;
  artifacts: Artifact[];
  idempotency_token: string;
  heartbeat_timeout: Duration | null;
  tries: number;
  max_attempts: number;
}

export interface Completion extends LeaseRef {
  output?: Value;
  artifacts?: { type: string; payload: Struct }[];
  /** Number of the last line that the attempt logged. */
  log_offset?: number;
}

export interface AttemptFailure extends LeaseRef {
  code: string;
  message: string;
  retryable?: boolean;
  retry_after?: Duration;
  log_offset?: number;
}

export interface Progress extends LeaseRef {
  fraction: number;
  message: string;
}

export interface LogLine {
  level: "DEBUG" | "INFO" | "WARN" | "ERROR";
  message: string;
  fields?: Struct;
  /** Lines that are missing here. */
  cut?: number;
}

/** Lines of an attempt, one after the other; `offset` is the number of the first. */
export interface LogBatch extends LeaseRef {
  offset: number;
  lines: LogLine[];
}

export interface LogAck extends LeaseRef {
  offset: number;
  again: boolean;
  error: { code: string; message: string } | null;
}

export interface Hello {
  protocol: number;
  worker_id: string;
  name: string;
  kinds: string[];
  agents: object[];
  types: object[];
  held: LeaseRef[];
  slots: number;
}

export interface WorkRequest {
  number: number;
  hello?: Hello;
  credit?: number;
  delivered?: LeaseRef[];
  completions?: Completion[];
  failures?: AttemptFailure[];
  progress?: Progress[];
  heartbeats?: LeaseRef[];
  released?: LeaseRef[];
  logs?: LogBatch[];
  drain?: boolean;
}

export interface WorkResponse {
  welcome: { session_id: string; lease: Duration | null; held: LeaseRef[]; log_window_bytes: number } | null;
  ack: number;
  leases: Lease[];
  cancellations: (LeaseRef & { reason: string })[];
  log_acks: LogAck[];
  refused: (LeaseRef & { error: { code: string; message: string } | null; cancel_requested: boolean })[];
  drain: boolean;
}

export type Stream = grpc.ClientDuplexStream<WorkRequest, WorkResponse>;

/** Reads the contract, a descriptor set such as envoy/millstream.binpb, and returns what opens streams of Work. */
export function contract(descriptors: string): (client: grpc.Client, metadata: grpc.Metadata) => Stream {
  const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: false };
  const found = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptors), options);
  const service = found["millstream.v1.WorkerService"] as grpc.ServiceDefinition;
  const work = service.Work as grpc.MethodDefinition<WorkRequest, WorkResponse>;
  return (client, metadata) =>
    client.makeBidiStreamRequest(work.path, work.requestSerialize, work.responseDeserialize, metadata);
}

export function toJson(value: Value | null | undefined): Json {
  if (value === null || value === undefined) return null;
  if (typeof value.string_value === "string") return value.string_value;
  if (typeof value.number_value === "number") return value.number_value;
  if (typeof value.bool_value === "boolean") return value.bool_value;
  if (value.struct_value) return fromStruct(value.struct_value);
  if (value.list_value) return (value.list_value.values ?? []).map(toJson);
  return null;
}

export function toValue(json: Json): Value {
  if (json === null) return { null_value: "NULL_VALUE" };
  if (typeof json === "string") return { string_value: json };
  if (typeof json === "boolean") return { bool_value: json };
  if (typeof json === "number") {
    if (!Number.isFinite(json)) throw new TypeError("JSON has no NaN and no infinity");
    return { number_value: json };
  }
  if (Array.isArray(json)) return { list_value: { values: json.map(toValue) } };
  return { struct_value: toStruct(json) };
}

export function fromStruct(struct: Struct | null | undefined): { [key: string]: Json } {
  // Without a prototype: a key such as "__proto__" is one like any other.
  const out: { [key: string]: Json } = Object.create(null);
  for (const { key, value } of struct?.fields ?? []) out[key] = toJson(value);
  return out;
}

export function toStruct(json: { [key: string]: Json }): Struct {
  return { fields: Object.entries(json).map(([key, value]) => ({ key, value: toValue(value) })) };
}

export const milliseconds = (span: Duration): number => span.seconds * 1000 + span.nanos / 1e6;

export const duration = (ms: number): Duration => ({
  seconds: Math.floor(ms / 1000),
  nanos: Math.round((ms % 1000) * 1e6),
});
