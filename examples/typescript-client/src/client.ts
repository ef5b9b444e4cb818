// A client of Millstream's REST face. Its types are made from the OpenAPI document (`npm run generate`), so that paths,
// parameters, bodies and answers are checked when this is compiled.

import createClient, { type Client } from "openapi-fetch";

import type { components, paths } from "./api.js";

export type Millstream = Client<paths>;
export type Schemas = components["schemas"];
export type Artifact = Schemas["Artifact"];

/** What the service refused, with the body that it gives to every error. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly body: Schemas["ErrorBody"],
  ) {
    super(`${body.code}: ${body.message}`);
  }
}

/** A client of the service at `url`; `key` is an API key, which a server in developer mode needs not. */
export function millstream(url: string, key?: string): Millstream {
  return createClient<paths>({ baseUrl: url, headers: key ? { authorization: `Bearer ${key}` } : {} });
}

/** The answer of a call. Throws Refused where there is none. */
export function answered<T>(called: { data?: T; error?: unknown; response: Response }): T {
  if (called.data === undefined) throw new Refused(called.response.status, called.error as Schemas["ErrorBody"]);
  return called.data;
}

/** The artifacts of a cascade as they come, those that are there first. It never ends by itself. */
export async function* cascade(url: string, id: string, key?: string): AsyncGenerator<Artifact> {
  const response = await fetch(`${url}/api/v1/artifacts/stream?correlation_id=${encodeURIComponent(id)}`, {
    headers: { accept: "application/x-ndjson", ...(key ? { authorization: `Bearer ${key}` } : {}) },
  });
  if (!response.ok || response.body === null) throw new Refused(response.status, await response.json());
  let rest = "";
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const said = JSON.parse(line);
      if (said.error) throw new Refused(response.status, said.error);
      if (said.id) yield said;
    }
  }
}
