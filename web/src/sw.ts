// The service worker: keeps the app itself, so that it starts offline. The worker keeps the large files (files.ts).

declare const __FILES__: string[]; // filled in by vite.config.ts
declare const __VERSION__: string;

const scope = self as unknown as ServiceWorkerGlobalScope;
const PREFIX = `snapgen-app ${new URL("./", location.href).pathname} `; // others may be on the same host
const CACHE = `${PREFIX}${__VERSION__}`;
const DESCRIPTION = "model/bundle.json";

scope.addEventListener("install", (event) => {
  const fill = async () => {
    await (await caches.open(CACHE)).addAll(["./", ...__FILES__, DESCRIPTION]);
    await scope.skipWaiting();
  };
  event.waitUntil(fill());
});

scope.addEventListener("activate", (event) => {
  const clean = async () => {
    const outdated = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== CACHE);
    await Promise.all(outdated.map((name) => caches.delete(name)));
    await scope.clients.claim();
  };
  event.waitUntil(clean());
});

scope.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  const folder = scope.registration.scope;
  if (method !== "GET" || !url.startsWith(folder)) return;
  const name = url.slice(folder.length).replace(/[?#].*/, "");
  if (name === "" || name === "index.html") event.respondWith(newest(event.request, "./"));
  else if (name === DESCRIPTION) event.respondWith(newest(event.request, DESCRIPTION));
  else if (__FILES__.includes(name)) event.respondWith(kept(event.request));
});

/** What is kept, else what the network gives: the names of these files change with their content. */
async function kept(request: Request): Promise<Response> {
  return (await (await caches.open(CACHE)).match(request)) ?? fetch(request);
}

/** What the network gives, else what is kept under `name`. */
async function newest(request: Request, name: string): Promise<Response> {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok && name === DESCRIPTION) await cache.put(name, response.clone());
    return response;
  } catch {
    return (await cache.match(name)) ?? Response.error();
  }
}
