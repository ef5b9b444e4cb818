// A worker of Millstream's tasks and agents, as docs/worker-protocol.md describes it.
import * as grpc from "@grpc/grpc-js";
import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { Outbox, Report, key, ref } from "./outbox";
import {
  Artifact, Json, Lease, LeaseRef, LogLine, Stream, WorkResponse, contract, duration, milliseconds, toJson, toStruct,
  toValue,
} from "./wire";

const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
const HELLO_TIMEOUT_MS = 15_000;
const CANCEL_GRACE_MS = 5_000;
const DRAIN_TIMEOUT_MS = 30_000;
const CLOSE_TIMEOUT_MS = 2_000;
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 10_000;

// Refusals of a hello that another try cannot change.
const FINAL = new Set([
  grpc.status.INVALID_ARGUMENT, grpc.status.FAILED_PRECONDITION, grpc.status.ALREADY_EXISTS, grpc.status.NOT_FOUND,
  grpc.status.OUT_OF_RANGE, grpc.status.PERMISSION_DENIED, grpc.status.UNAUTHENTICATED, grpc.status.UNIMPLEMENTED,
]);

/** Thrown by a handler to fail its attempt with a code of its own. */
export class TaskError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly retryable = false,
    readonly retryAfterMs?: number,
  ) {
    super(message);
  }
}

/** One attempt at one task, from inside. */
export interface Context {
  lease: Lease;
  /** Aborted when the task is cancelled or its lease is lost: stop then. */
  signal: AbortSignal;
  progress(fraction: number, message?: string): void;
  /** Sends a line of the task's log. Never waits. */
  log(level: LogLine["level"], message: string, fields?: { [key: string]: Json }): void;
}

export interface Produced {
  type: string;
  payload: { [key: string]: Json };
}

export type TaskHandler = (input: Json, context: Context) => Json | Promise<Json>;
export type AgentHandler = (artifacts: Artifact[], context: Context) => Produced[] | Promise<Produced[]>;

export interface AgentOptions {
  consumes: string[];
  publishes: string[];
}

export interface WorkerOptions {
  target: string;
  /** Path of the contract's descriptor set. */
  descriptors: string;
  slots?: number;
  apiKey?: string;
  name?: string;
}

interface Held {
  lease: Lease;
  abort: AbortController;
  lost: boolean;
  /** What the server is given back when it ends; 0 where the server does not count it. */
  credit: number;
  beat?: NodeJS.Timeout;
}

export class Worker {
  private readonly id = randomUUID();
  private readonly slots: number;
  private readonly tasks = new Map<string, TaskHandler>();
  private readonly agents = new Map<string, { handler: AgentHandler; options: AgentOptions }>();
  private readonly held = new Map<string, Held>();
  private readonly outbox: Outbox;
  private readonly open: ReturnType<typeof contract>;
  private stream: Stream | null = null;
  private logWindow = 0;
  private ready = false;
  private writable = true;
  private writing = false;
  private leaving = false;
  private stopping = false;
  private wakeUp: () => void = () => {};

  constructor(private readonly options: WorkerOptions) {
    this.slots = options.slots ?? 100;
    this.open = contract(options.descriptors);
    this.outbox = new Outbox(this.slots, () => this.flush());
  }

  /** Serves a kind of standalone tasks. */
  task(kind: string, handler: TaskHandler): this {
    this.tasks.set(kind, handler);
    return this;
  }

  /** Serves an agent, whose types are registered with it. */
  agent(name: string, options: AgentOptions, handler: AgentHandler): this {
    this.agents.set(name, { handler, options });
    return this;
  }

  /** Works until `stop`; rejects where the service refuses the worker. */
  async run(): Promise<void> {
    for (let failures = 0; !this.done; failures++) {
      const end = await this.session();
      if (end.stored) failures = 0;
      if (FINAL.has(end.status.code) && !end.welcomed)
        throw new Error(`refused: ${grpc.status[end.status.code]}: ${end.status.details}`);
      if (!this.done && !end.left) await this.pause(failures);
    }
  }

  /** Takes no more, finishes what runs, and ends. */
  stop(): void {
    if (this.stopping) return;
    this.stopping = true;
    this.outbox.leave();
    setTimeout(() => {
      for (const each of this.held.values()) this.fail(each, "WORKER_STOPPED", "the worker stopped", true);
      setTimeout(() => process.exit(1), CLOSE_TIMEOUT_MS).unref();
    }, DRAIN_TIMEOUT_MS).unref();
    this.wakeUp();
    this.leaveWhenDone();
  }

  private get done(): boolean {
    return this.stopping && this.held.size === 0 && this.outbox.settled;
  }

  // -- one stream ---------------------------------------------------------------------------------------------

  private session(): Promise<{ status: grpc.StatusObject; welcomed: boolean; stored: boolean; left: boolean }> {
    const client = new grpc.Client(this.options.target, grpc.credentials.createInsecure(), {
      "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
      "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
      "grpc.keepalive_time_ms": 30_000,
      // A connection of its own: that of a server that is going must not be used again.
      "grpc.use_local_subchannel_pool": 1,
    });
    const metadata = new grpc.Metadata();
    if (this.options.apiKey) metadata.set("authorization", `Bearer ${this.options.apiKey}`);
    const stream = this.open(client, metadata);
    this.stream = stream;
    this.ready = this.leaving = false;
    this.writable = true;
    let stored = false;
    let pulse: NodeJS.Timeout | undefined;
    const patience = setTimeout(() => stream.cancel(), HELLO_TIMEOUT_MS);
    stream.on("drain", () => {
      this.writable = true;
      this.flush();
    });
    stream.on("data", (response: WorkResponse) => {
      if (response.welcome) {
        clearTimeout(patience);
        this.welcome(response.welcome.held, response.welcome.log_window_bytes);
        const lease = response.welcome.lease ? milliseconds(response.welcome.lease) : 30_000;
        pulse = setInterval(() => this.outbox.live(), lease / 3);
      }
      stored ||= response.ack > 1;
      this.handle(response);
    });
    return new Promise((resolve) => {
      stream.on("error", () => {}); // the status says all of it
      stream.on("status", (status: grpc.StatusObject) => {
        clearTimeout(patience);
        clearInterval(pulse);
        this.stream = null;
        client.close();
        resolve({ status, welcomed: this.ready, stored, left: this.leaving });
        this.ready = false;
      });
      stream.write({ number: 1, hello: this.hello() });
    });
  }

  private hello() {
    const agents = [...this.agents].map(([name, { options }]) => ({
      name,
      subscriptions: [{ types: options.consumes }],
      outputs: options.publishes,
    }));
    const types = new Set([...this.agents.values()].flatMap(({ options }) => [...options.consumes, ...options.publishes]));
    const running = [...this.held.values()].filter((each) => !each.lost).map((each) => ref(each.lease));
    return {
      protocol: 1,
      worker_id: this.id,
      name: this.options.name ?? `${hostname()}-${process.pid}`,
      kinds: [...this.tasks.keys()],
      agents,
      types: [...types].map((name) => ({ name })),
      held: [...this.outbox.unsettled(), ...running].slice(0, 10_000),
      slots: this.slots,
    };
  }

  private welcome(held: LeaseRef[], logWindow: number): void {
    this.logWindow = logWindow;
    const ours = new Set(held.map(key));
    for (const [fence, each] of this.held) {
      if (ours.has(fence)) continue;
      each.credit = 0;
      this.lose(each);
    }
    this.outbox.restart(ours);
    this.outbox.logs.restart(logWindow);
    if (this.stopping) this.outbox.leave();
    this.ready = true;
    this.flush();
  }

  private handle(response: WorkResponse): void {
    for (const each of response.refused) {
      if (each.error) console.warn(`${key(each)} was refused: ${each.error.code}: ${each.error.message}`);
      if (each.cancel_requested) this.cancel(each, "CANCELLED");
    }
    if (response.ack) this.outbox.acknowledge(response.ack);
    if (response.log_acks.length) this.outbox.logs.acknowledge(response.log_acks, this.logWindow);
    if (response.leases.length) this.accept(response.leases);
    for (const each of response.cancellations) this.cancel(each, each.reason);
    if (response.drain) this.leaving = true;
    this.leaveWhenDone();
  }

  /** Writes what there is to say, one message at a time: what comes meanwhile goes into the next one. */
  private flush(): void {
    if (this.writing || !this.ready) return;
    this.writing = true;
    setImmediate(() => {
      this.writing = false;
      const message = this.ready && this.writable && this.stream ? this.outbox.take() : null;
      if (message === null) return;
      this.writable = this.stream!.write(message);
      this.flush();
    });
  }

  /** Ends the stream once nothing is held and all is stored, where this side or the other one goes. */
  private leaveWhenDone(): void {
    if (!(this.leaving || this.stopping) || !this.ready || this.held.size || !this.outbox.settled || !this.outbox.logs.settled) return;
    this.leaving = true;
    const stream = this.stream;
    // Behind what is being written at this moment.
    setImmediate(() => stream?.end());
    if (this.stopping) setTimeout(() => stream?.cancel(), CLOSE_TIMEOUT_MS).unref();
  }

  private pause(failures: number): Promise<void> {
    const whole = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(failures, 30));
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, whole * (0.5 + Math.random() / 2));
      this.wakeUp = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  // -- leases -------------------------------------------------------------------------------------------------

  private accept(leases: Lease[]): void {
    for (const lease of leases) {
      if (this.held.has(key(lease)) || this.outbox.reported(lease)) {
        this.outbox.arrived([lease]);
      } else if (this.stopping) {
        this.outbox.release(lease);
      } else {
        this.outbox.arrived([lease]);
        this.begin(lease);
      }
    }
  }

  private begin(lease: Lease): void {
    const held: Held = { lease, abort: new AbortController(), lost: false, credit: 1 };
    this.held.set(key(lease), held);
    if (lease.heartbeat_timeout)
      held.beat = setInterval(() => this.outbox.beat(lease), milliseconds(lease.heartbeat_timeout) / 3);
    this.attempt(held).then(
      (report) => this.end(held, report),
      (error: unknown) => this.failed(held, error),
    );
  }

  private async attempt(held: Held): Promise<Report> {
    const { lease } = held;
    const context: Context = {
      lease,
      signal: held.abort.signal,
      progress: (fraction, message = "") => this.outbox.tell({ ...ref(lease), fraction, message }),
      log: (level, message, fields) =>
        this.outbox.logs.write(lease, { level, message, ...(fields ? { fields: toStruct(fields) } : {}) }),
    };
    const task = this.tasks.get(lease.kind);
    if (task) return { completion: { ...ref(lease), output: toValue(await task(toJson(lease.input), context)) } };
    const agent = this.agents.get(lease.agent);
    if (!agent) throw new TaskError("UNKNOWN_KIND", `this worker has no handler for ${lease.kind}`, true);
    const made = await agent.handler(lease.artifacts, context);
    return {
      completion: {
        ...ref(lease),
        artifacts: made.map(({ type, payload }) => ({ type, payload: toStruct(payload) })),
      },
    };
  }

  private failed(held: Held, error: unknown): void {
    if (held.abort.signal.aborted) return this.fail(held, "CANCELLED", "cancelled", false);
    if (error instanceof TaskError)
      return this.fail(held, error.code, error.message, error.retryable, error.retryAfterMs);
    const thrown = error instanceof Error ? error : new Error(String(error));
    this.fail(held, thrown.name, thrown.message);
  }

  private fail(held: Held, code: string, message: string, retryable?: boolean, retryAfterMs?: number): void {
    const failure = { ...ref(held.lease), code: code.slice(0, 128), message: message.slice(0, 4000) };
    this.end(held, {
      failure: {
        ...failure,
        ...(retryable === undefined ? {} : { retryable }),
        ...(retryAfterMs === undefined ? {} : { retry_after: duration(retryAfterMs) }),
      },
    });
  }

  /** Takes it out of the books; what was lost is not reported. */
  private end(held: Held, report: Report): void {
    if (this.held.get(key(held.lease)) !== held) return;
    this.held.delete(key(held.lease));
    clearInterval(held.beat);
    const last = this.outbox.logs.close(held.lease);
    if (last) ("completion" in report ? report.completion : report.failure).log_offset = last;
    if (held.lost) this.outbox.giveCredit(held.credit);
    else this.outbox.report(report, held.credit);
    this.leaveWhenDone();
  }

  private cancel(of: LeaseRef, reason: string): void {
    const held = this.held.get(key(of));
    if (!held) return;
    if (reason === "LEASE_LOST") this.lose(held);
    else this.interrupt(held);
  }

  private lose(held: Held): void {
    held.lost = true;
    this.interrupt(held);
  }

  private interrupt(held: Held): void {
    held.abort.abort();
    // Code that does not listen cannot be stopped; what it makes is not looked at any more.
    setTimeout(() => this.fail(held, "CANCELLED", "cancelled", false), CANCEL_GRACE_MS).unref();
  }
}
