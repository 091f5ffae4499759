import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { defineConfig, type Plugin } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const hash = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex");

// The files of onnxruntime-web are copied as they are: it starts its threads from its own module.
const ORT = here("node_modules/onnxruntime-web");
const { version } = JSON.parse(readFileSync(`${ORT}/package.json`, "utf8"));
const runtime = (module: string, binary: string) => {
  const content = readFileSync(`${ORT}/dist/${binary}`);
  const folder = `assets/ort-${version}`;
  return {
    module: `${folder}/${module}`,
    binary: `${folder}/${binary}`,
    facts: { bytes: content.length, sha256: hash(content) },
  };
};
const RUNTIMES = {
  wasm: runtime("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
  webgpu: runtime("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
};

/** Adds the runtimes, and gives the service worker the list of what the app needs to start. */
function assemble(): Plugin {
  return {
    name: "assemble",
    apply: "build",
    generateBundle(_, files) {
      const names = Object.keys(files).filter((name) => name !== "sw.js");
      for (const { module, binary } of Object.values(RUNTIMES)) {
        for (const fileName of [module, binary]) {
          const source = readFileSync(`${ORT}/dist/${fileName.split("/").pop()}`);
          this.emitFile({ type: "asset", fileName, source });
        }
        names.push(module);
      }
      names.push(...readdirSync(here("public")));
      const contents = Object.values(files).map((file) => (file.type === "chunk" ? file.code : file.source));
      const worker = files["sw.js"];
      if (worker?.type !== "chunk") throw new Error("the service worker is missing");
      worker.code = worker.code
        .replace("__FILES__", JSON.stringify(names.sort()))
        .replace("__VERSION__", JSON.stringify(hash(contents.map((content) => hash(content)).join()).slice(0, 12)));
    },
  };
}

export default defineConfig({
  base: "./", // works below any path
  define: { RUNTIMES: JSON.stringify(RUNTIMES) },
  plugins: [assemble()],
  build: {
    target: "es2022",
    outDir: process.env.SNAPGEN_APP ?? here("../src/snapgen/web/app"),
    emptyOutDir: false, // the model stays
    chunkSizeWarningLimit: 300,
    rollupOptions: {
      input: { index: here("index.html"), sw: here("src/sw.ts") },
      output: { entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
  worker: { format: "es" },
});
