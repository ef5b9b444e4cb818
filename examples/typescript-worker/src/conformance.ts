// What `millstream conformance` asks of a worker: node dist/conformance.js [DESCRIPTORS]
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Json, fromStruct } from "./wire";
import { TaskError, Worker } from "./worker";

type Fields = { [key: string]: Json };

const worker = new Worker({
  target: process.env.MILLSTREAM_TARGET ?? "127.0.0.1:8080",
  descriptors: process.argv[2] ?? join(__dirname, "../../../envoy/millstream.binpb"),
  slots: Number(process.env.MILLSTREAM_CONFORMANCE_SLOTS ?? 20),
  apiKey: process.env.MILLSTREAM_API_KEY,
  name: "conformance",
});
const begun = new Map<string, number>();

worker
  .task("conformance.echo", (input) => input)
  .task("conformance.fail", (input) => {
    const { code, message, retryable, retry_after_ms } = input as Fields;
    const after = typeof retry_after_ms === "number" ? retry_after_ms : undefined;
    throw new TaskError(String(code), String(message), retryable === true, after);
  })
  .task("conformance.sleep", async (input, { lease, signal }) => {
    const attempt = `${lease.task_id}#${lease.attempt}`;
    begun.set(attempt, (begun.get(attempt) ?? 0) + 1);
    await sleep(Number((input as Fields).ms), undefined, { signal });
    return { runs: begun.get(attempt) ?? 0 };
  })
  .task("conformance.hold", (_input, { signal }) =>
    new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
  )
  .task("conformance.progress", (input, { progress, log }) => {
    const { fraction, message } = input as Fields;
    log("INFO", `${Number(fraction) * 100} % done`);
    progress(Number(fraction), String(message ?? ""));
    return null;
  })
  .task("conformance.log", (input, { log, signal }) => {
    const { lines, hold } = input as { lines: { level: "INFO"; message: string; fields: Fields }[]; hold?: boolean };
    for (const { level, message, fields } of lines) log(level, message, fields);
    if (!hold) return { lines: lines.length };
    return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  })
  .task("conformance.token", (_input, { lease }) => ({ idempotency_token: lease.idempotency_token }))
  .agent(
    "conformance-publisher",
    { consumes: ["ConformanceInput"], publishes: ["ConformanceOutput"] },
    ([artifact]) => {
      const { items } = fromStruct(artifact?.payload);
      return (items as Json[]).map((item) => ({ type: "ConformanceOutput", payload: { item } }));
    },
  );

process.on("SIGTERM", () => worker.stop());
process.on("SIGINT", () => worker.stop());
worker.run().then(
  () => process.exit(0),
  (error: unknown) => {
    console.error(error);
    process.exit(1);
  },
);
