// The examples of the README, by the generated client: `make run` in one shell, this in another.

import { answered, cascade, millstream, Refused } from "./client.js";

const url = process.env["MILLSTREAM_URL"] ?? "http://127.0.0.1:8080";
const key = process.env["MILLSTREAM_API_KEY"];
const client = millstream(url, key);
const mark = Date.now().toString(36);

// Publish an order and wait for what it sets off.
const order = { order_id: "o-1", amount: 12.5, items: ["tea"] };
const told = answered(
  await client.POST("/api/v1/artifacts/sync", {
    body: { type: "Order", payload: order, filters: { type_names: ["Notification"] } },
  }),
);
for (const artifact of told.artifacts) console.log("told:", artifact.produced_by, artifact.payload?.["message"]);

// The same with a key takes effect once.
const once = () =>
  client.POST("/api/v1/artifacts", {
    params: { header: { "X-Idempotency-Key": `order-17-${mark}` } },
    body: { type: "Order", payload: { order_id: "o-17", amount: 3 } },
  });
const [first, again] = [await once(), await once()];
console.log("once:", answered(first).artifact_id === answered(again).artifact_id);
console.log("replayed:", again.response.headers.get("idempotency-replayed"));

// A payload that breaks its schema is refused, and the field is named.
try {
  answered(await client.POST("/api/v1/artifacts", { body: { type: "Order", payload: { order_id: 18 } } }));
} catch (error) {
  if (!(error instanceof Refused)) throw error;
  console.log("refused:", error.status, error.body.code, error.body.details.map((each) => each.field).join(" "));
}

// The artifacts of a cascade as they come.
for await (const artifact of cascade(url, answered(first).correlation_id, key)) {
  console.log("came:", artifact.type);
  if (artifact.type === "Notification") break;
}

// Lists come in pages.
const page = answered(await client.GET("/api/v1/runs", { params: { query: { page_size: 2, page_token: "" } } }));
const next = page.pagination?.next_page_token ?? "";
const more = answered(await client.GET("/api/v1/runs", { params: { query: { page_size: 2, page_token: next } } }));
console.log("runs:", page.items.length, "and", more.items.length > 0 ? "more" : "no more");

// A promise is asked for, found by whoever answers it, and awaited.
const promise = `key:order-1042-${mark}`;
answered(
  await client.POST("/api/v1/promises", {
    body: { name: "approval", key: promise.slice(4), input: { amount: 950 }, timeout: "86400s" },
  }),
);
const open = answered(
  await client.GET("/api/v1/promises", {
    params: { query: { state: "PENDING", name: "approval", key: promise.slice(4) } },
  }),
);
const path = { promise_id: promise };
const asked = answered(await client.GET("/api/v1/promises/{promise_id}", { params: { path } }));
console.log("asked:", open.items[0]?.name, asked.input);
answered(
  await client.POST("/api/v1/promises/{promise_id}/resolve", {
    params: { path },
    body: { value: { approved: true } },
  }),
);
const settled = answered(
  await client.GET("/api/v1/promises/{promise_id}/await", { params: { path, query: { timeout: 30 } } }),
);
console.log("settled:", settled.state, settled.value);
