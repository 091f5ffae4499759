// What the page and its worker say to each other.

import type { Bundle } from "./bundle";
import type { Wish } from "./sampler";

export type Runtime = "wasm" | "webgpu";

export interface OpenRequest {
  kind: "open";
  base: string; // the address of the app's folder
  runtime: Runtime;
  threads: number;
}

export type Question =
  | OpenRequest
  | { kind: "draw"; wish: Wish }
  | { kind: "probe" } // one velocity, to compare runtimes
  | { kind: "stop" };

export type Answer =
  | { kind: "described"; bundle: Bundle; bytes: number; kept: boolean } // before the files are loaded
  | { kind: "progress"; received: number }
  | { kind: "opened" }
  | { kind: "step"; step: number; pixels: Uint8ClampedArray<ArrayBuffer> | null }
  | { kind: "drawn"; picture: Drawn | null } // null: stopped
  | { kind: "probed"; probe: Probe }
  | { kind: "failed"; message: string };

export interface Drawn {
  pixels: Uint8ClampedArray<ArrayBuffer>; // RGBA
  cut: boolean; // whether the prompt was too long
  seconds: number;
}

export interface Probe {
  velocity: Float32Array;
  seconds: number;
}
