// What vite.config.ts knows of the files of onnxruntime-web, by runtime.
declare const RUNTIMES: Record<
  "wasm" | "webgpu",
  { module: string; binary: string; facts: { bytes: number; sha256: string } }
>;
