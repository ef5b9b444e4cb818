// What the worker has to say, gathered into as few messages as the stream takes, and kept until it is stored.
import { key, Logs, ref } from "./logs";
import { AttemptFailure, Completion, LeaseRef, Progress, WorkRequest } from "./wire";

const MAX_ITEMS = 5_000;

export type Report = { completion: Completion } | { failure: AttemptFailure };

export { key, ref } from "./logs";
export const fence = (report: Report): LeaseRef => ("completion" in report ? report.completion : report.failure);

interface Sent {
  number: number;
  reports: Report[];
  delivered: LeaseRef[];
}

export class Outbox {
  private reports: Report[] = [];
  private delivered: LeaseRef[] = [];
  private released: LeaseRef[] = [];
  private heartbeats: LeaseRef[] = [];
  private progress = new Map<string, Progress>();
  readonly logs = new Logs(() => this.wake());
  private credit = 0;
  private drain = false;
  private keepAlive = false;
  private number = 1;
  private sent: Sent[] = [];
  private readonly open = new Set<string>();
  private readonly maxUnacked: number;

  /** @param wake is called when there is something to send. */
  constructor(slots: number, private readonly wake: () => void) {
    this.maxUnacked = Math.max(1_000, slots);
  }

  report(report: Report, credit: number): void {
    this.reports.push(report);
    this.open.add(key(fence(report)));
    this.credit += credit;
    this.wake();
  }

  giveCredit(credit: number): void {
    this.credit += credit;
    if (credit) this.wake();
  }

  arrived(refs: LeaseRef[]): void {
    this.delivered.push(...refs.map(ref));
    this.wake();
  }

  release(of: LeaseRef): void {
    this.released.push(ref(of));
    this.wake();
  }

  beat(of: LeaseRef): void {
    this.heartbeats.push(ref(of));
    this.wake();
  }

  tell(progress: Progress): void {
    this.progress.set(key(progress), progress);
    this.wake();
  }

  leave(): void {
    this.drain = true;
    this.wake();
  }

  live(): void {
    this.keepAlive = true;
    this.wake();
  }

  /** The next message; null where there is nothing to say. */
  take(): WorkRequest | null {
    const reports = this.reports.splice(0, MAX_ITEMS);
    // With too much that is not acknowledged no more is asked for, so memory is bounded.
    const credit = this.open.size > this.maxUnacked ? 0 : Math.min(this.credit, 10_000);
    const logs = this.logs.take();
    const said =
      logs.length + reports.length + this.delivered.length + this.released.length + this.heartbeats.length + this.progress.size;
    if (!said && !credit && !this.drain && !this.keepAlive) return null;
    this.credit -= credit;
    this.number += 1;
    const message: WorkRequest = {
      number: this.number,
      credit,
      delivered: this.delivered,
      released: this.released,
      heartbeats: this.heartbeats,
      progress: [...this.progress.values()],
      completions: reports.flatMap((each) => ("completion" in each ? [each.completion] : [])),
      failures: reports.flatMap((each) => ("failure" in each ? [each.failure] : [])),
      logs,
      drain: this.drain,
    };
    if (reports.length || this.delivered.length)
      this.sent.push({ number: this.number, reports, delivered: this.delivered });
    this.delivered = [];
    this.released = [];
    this.heartbeats = [];
    this.progress.clear();
    this.drain = this.keepAlive = false;
    return message;
  }

  acknowledge(number: number): void {
    while (this.sent[0] !== undefined && this.sent[0].number <= number)
      for (const report of this.sent.shift()!.reports) this.open.delete(key(fence(report)));
    if (this.credit) this.wake();
  }

  /** Leases whose reports are not known to be stored. */
  unsettled(): LeaseRef[] {
    return [...this.sent.flatMap((each) => each.reports), ...this.reports].map((each) => ref(fence(each)));
  }

  /** Whether a lease has a report that is not known to be stored. */
  reported(of: LeaseRef): boolean {
    return this.open.has(key(of));
  }

  get settled(): boolean {
    return this.open.size === 0;
  }

  /** For a new stream: what was not acknowledged goes again, as far as it is about leases that are still ours. */
  restart(ours: Set<string>): void {
    const again = [...this.sent.flatMap((each) => each.reports), ...this.reports];
    const arrivals = [...this.sent.flatMap((each) => each.delivered), ...this.delivered];
    this.reports = again.filter((each) => ours.has(key(fence(each))));
    this.delivered = arrivals.filter((each) => ours.has(key(each)));
    this.open.clear();
    for (const report of this.reports) this.open.add(key(fence(report)));
    // The server starts with the slots less what is held, and these of it have ended by now.
    this.credit = this.reports.length;
    this.sent = [];
    this.released = [];
    this.heartbeats = [];
    this.progress.clear();
    this.drain = this.keepAlive = false;
    this.number = 1;
    this.wake();
  }
}
