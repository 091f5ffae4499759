// Fetches the large files, checks their size and hash, and keeps them in the browser for the next visit and offline.

import type { FileFacts } from "./bundle";
import { Problem } from "./problem";

export type OnBytes = (count: number) => void; // called with each part's number of bytes

/** Where files of the app at `base` are kept, by hash; null where the browser offers no place: without HTTPS. */
export async function openCache(base: URL): Promise<Cache | null> {
  try {
    return await caches.open(`snapgen-files ${base.pathname}`);
  } catch {
    return null;
  }
}

/** The file at `url`, from the cache if it is there. */
export async function getFile(url: URL, facts: FileFacts, cache: Cache | null, onBytes: OnBytes): Promise<ArrayBuffer> {
  const kept = await cache?.match(keyOf(facts));
  if (kept) {
    const content = await kept.arrayBuffer();
    if (content.byteLength === facts.bytes) {
      onBytes(facts.bytes);
      return content;
    }
  }
  const address = new URL(url);
  address.searchParams.set("v", facts.sha256.slice(0, 16)); // no cache on the way gives an earlier file
  let content: ArrayBuffer;
  try {
    content = await download(address, facts, onBytes);
  } catch (error) {
    if (!(error instanceof Changed)) throw error;
    content = await download(address, facts, onBytes, { cache: "reload" }); // a cache on the way may be wrong
  }
  try {
    await cache?.put(keyOf(facts), new Response(content));
  } catch {
    // No space left: it is fetched again next time.
  }
  return content;
}

/** Removes what is kept of other models and of earlier versions. */
export async function keepOnly(files: FileFacts[], cache: Cache | null): Promise<void> {
  const wanted = new Set(files.map((facts) => new URL(keyOf(facts), location.href).href));
  for (const request of (await cache?.keys()) ?? []) {
    if (!wanted.has(request.url)) await cache?.delete(request);
  }
}

/** Whether all of `files` are kept. */
export async function areKept(files: FileFacts[], cache: Cache | null): Promise<boolean> {
  const found = await Promise.all(files.map((facts) => cache?.match(keyOf(facts))));
  return found.every(Boolean);
}

function keyOf(facts: FileFacts): string {
  return `kept-${facts.sha256}`;
}

/** A file that is not the one that the model's description lists. */
class Changed extends Problem {
  constructor(name: string, how: string) {
    super(`${name} is not the file that belongs to this model: it is ${how}. Reload, or export the model again.`);
  }
}

async function download(
  url: URL,
  facts: FileFacts,
  onBytes: OnBytes,
  settings: RequestInit = {},
): Promise<ArrayBuffer> {
  const name = url.pathname.split("/").pop()!;
  const response = await request(url, name, settings);
  const content = new Uint8Array(facts.bytes);
  let received = 0;
  try {
    for await (const part of partsOf(response, name)) {
      if (received + part.length > facts.bytes) throw new Changed(name, "longer");
      content.set(part, received);
      received += part.length;
      onBytes(part.length);
    }
    if (received < facts.bytes) throw new Changed(name, "shorter");
    // On pages without HTTPS browsers compute no hashes.
    if (globalThis.crypto?.subtle && (await hashOf(content)) !== facts.sha256) throw new Changed(name, "of other content");
  } catch (error) {
    onBytes(-received);
    throw error;
  }
  return content.buffer;
}

/** The parts of a response's body as they come; a Problem if the connection ends. */
async function* partsOf(response: Response, name: string): AsyncGenerator<Uint8Array> {
  const reader = response.body!.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Problem(`The connection was lost while ${name} was loading. Try again.`);
    });
    if (done) return;
    yield value;
  }
}

/** The response for `url`; a Problem that names the file if there is none. */
export async function request(url: URL, name: string, settings: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, settings);
  } catch {
    const offline = navigator.onLine ? "the server does not answer" : "you are offline";
    throw new Problem(`${name} could not be loaded: ${offline}. Try again later.`);
  }
  if (!response.ok) throw new Problem(`${name} could not be loaded: the server answered ${response.status}.`);
  return response;
}

async function hashOf(content: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
