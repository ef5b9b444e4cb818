// What tasks log: kept until the server has stored it, and bounded.
import { LeaseRef, LogAck, LogBatch, LogLine } from "./wire";

const MAX_LINES = 10_000;
const BATCH_LINES = 200;

export const key = (ref: LeaseRef): string => `${ref.task_id}#${ref.attempt}`;
export const ref = (of: LeaseRef): LeaseRef => ({ task_id: of.task_id, attempt: of.attempt });

interface Log {
  of: LeaseRef;
  /** Lines that the server has stored: the first of `lines` is the next. */
  acked: number;
  lines: LogLine[];
  sent: number;
  cut: number;
  /** The attempt has ended. */
  closed: boolean;
  /** The server takes no more of it. */
  ended: boolean;
}

export class Logs {
  private readonly logs = new Map<string, Log>();
  private room = 0;
  private window = 0;

  /** @param wake is called when there is something to send. */
  constructor(private readonly wake: () => void) {}

  write(of: LeaseRef, line: LogLine): void {
    // A server of an older release takes none: nothing may wait for it.
    if (!this.window) return;
    const log = this.logs.get(key(of)) ?? { of: ref(of), acked: 0, lines: [], sent: 0, cut: 0, closed: false, ended: false };
    this.logs.set(key(of), log);
    if (log.ended) return;
    if (log.lines.length >= MAX_LINES) {
      log.cut += 1;
      return;
    }
    if (log.cut) log.lines.push({ level: "WARN", message: `${log.cut} lines were cut here`, cut: log.cut });
    log.cut = 0;
    // A text is at most 32 KiB: a character takes up to 3 bytes of them.
    log.lines.push({ ...line, message: line.message.slice(0, 10_000) });
    this.wake();
  }

  /** No more comes of an attempt, whose numbers are needed until all is stored. Returns that of its last line. */
  close(of: LeaseRef): number {
    const log = this.logs.get(key(of));
    if (log === undefined) return 0;
    log.closed = true;
    if (!log.lines.length) this.logs.delete(key(of));
    return log.acked + log.lines.length;
  }

  /** The next lines of each attempt, while there is room on the way. */
  take(): LogBatch[] {
    const batches: LogBatch[] = [];
    for (const log of this.logs.values()) {
      const lines = log.lines.slice(log.sent, log.sent + BATCH_LINES);
      const size = lines.reduce((sum, line) => sum + 3 * line.message.length + 50, 0);
      if (!lines.length || size > this.room) continue;
      this.room -= size;
      batches.push({ ...log.of, offset: log.acked + log.sent + 1, lines });
      log.sent += lines.length;
    }
    return batches;
  }

  acknowledge(acks: LogAck[], window: number): void {
    for (const ack of acks) {
      const log = this.logs.get(key(ack));
      if (log === undefined) continue;
      const stored = Math.max(0, Math.min(ack.offset - log.acked, log.lines.length));
      log.lines.splice(0, stored);
      log.acked += stored;
      log.sent = ack.again ? 0 : Math.max(0, log.sent - stored);
      if (ack.error) {
        log.ended = true;
        log.lines = [];
        log.sent = 0;
      }
      if (log.closed && !log.lines.length) this.logs.delete(key(ack));
    }
    this.room = window;
    if (this.logs.size) this.wake();
  }

  /** For a new stream: what was not acknowledged goes again. A server with a window of 0 takes none. */
  restart(window: number): void {
    this.room = this.window = window;
    if (!window) this.logs.clear();
    for (const log of this.logs.values()) log.sent = 0;
  }

  get settled(): boolean {
    return [...this.logs.values()].every((log) => !log.lines.length);
  }
}
