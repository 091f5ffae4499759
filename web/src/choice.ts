// Which runtime draws: WebAssembly with one thread or two, or the graphics processor. Each has to prove itself.

import { Engine, type Loading } from "./engine";
import { Problem } from "./problem";
import type { Probe } from "./protocol";

const THREADS = "snapgen-threads"; // localStorage: the number that was faster
const MORE_THREADS = 2;
const LARGEST_ERROR = 1e-4; // relative, of a velocity by the graphics processor
const PATIENCE = 60_000; // ms that the graphics processor has to load and try
const SILENT: Loading = { described: () => undefined, progress: () => undefined };

// The smallest module with an instruction of WebAssembly's SIMD, without which the runtime does not start.
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
);

/** A Problem if this browser cannot run the app at all. */
export function checkBrowser(): void {
  const supported = typeof WebAssembly === "object" && WebAssembly.validate(SIMD) && typeof Worker === "function";
  if (!supported || typeof CompressionStream !== "function") {
    throw new Problem(
      "This browser is too old to draw: it lacks WebAssembly with SIMD. Update it, or use a current Firefox, Chrome, Edge or Safari.",
    );
  }
}

/** The model on WebAssembly, with the number of threads that is faster where more than one is possible. */
export async function openEngine(loading: Loading): Promise<Engine> {
  const possible = globalThis.crossOriginIsolated && navigator.hardwareConcurrency >= MORE_THREADS;
  const known = Number(recall(THREADS));
  const first = await Engine.open("wasm", possible && known === MORE_THREADS ? MORE_THREADS : 1, loading);
  if (!possible || known) return first;
  const one = await first.probe();
  let second: Engine;
  let two: Probe;
  try {
    second = await Engine.open("wasm", MORE_THREADS, SILENT);
    two = await second.probe();
  } catch {
    return first;
  }
  const [best, other] = two.seconds < one.seconds ? [second, first] : [first, second];
  other.close();
  keep(THREADS, String(best.threads));
  return best;
}

/** The model on the graphics processor, if it agrees with `reference` and is faster; a Problem saying why not. */
export async function openGraphics(reference: Engine): Promise<Engine> {
  await checkGraphics();
  const expected = await reference.probe();
  const signal = AbortSignal.timeout(PATIENCE);
  const engine = await Engine.open("webgpu", 1, SILENT, signal);
  try {
    judge(expected, await engine.probe(signal));
  } catch (error) {
    engine.close();
    throw error;
  }
  return engine;
}

/** A Problem unless `found` is as exact as the app promises, and faster than `expected`. */
export function judge(expected: Probe, found: Probe): void {
  const error = relativeError(found.velocity, expected.velocity);
  if (!(error <= LARGEST_ERROR)) {
    throw new Problem("The graphics processor computes other numbers here, so pictures would differ.");
  }
  if (found.seconds >= expected.seconds) {
    const [there, here] = [found, expected].map(({ seconds }) => `${seconds.toFixed(2)} s`);
    throw new Problem(`The graphics processor is no faster here: ${there} a step, ${here} without.`);
  }
}

/** |x - y| / |y|. */
export function relativeError(x: Float32Array, y: Float32Array): number {
  if (x.length !== y.length) return Infinity;
  const norm = (values: Float32Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  return norm(x.map((value, index) => value - y[index]!)) / norm(y);
}

/** A Problem unless the browser offers WebGPU on a real graphics processor. */
async function checkGraphics(): Promise<void> {
  const { gpu } = navigator as { gpu?: { requestAdapter(): Promise<{ info?: { isFallbackAdapter?: boolean } } | null> } };
  if (!gpu || !("Suspending" in WebAssembly)) throw new Problem("This browser does not offer what is needed (WebGPU, JSPI).");
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter || adapter.info?.isFallbackAdapter) throw new Problem("The browser found no graphics processor to use.");
}

function recall(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function keep(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage is blocked: it is tried again next time.
  }
}
