import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { defineConfig, type Plugin } from "vite";

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const hash = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex");

// The files of onnxruntime-web are copied as they are: it starts its threads from its own module.
const ORT = here("node_modules/onnxruntime-web");
const facts = (name: string) => JSON.parse(readFileSync(here(`node_modules/${name}/package.json`), "utf8"));
const { version } = facts("onnxruntime-web");
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

/** What the packages that are built into the app say of their licences. */
function licenses(): string {
  return Object.keys(JSON.parse(readFileSync(here("package.json"), "utf8")).dependencies)
    .map((name) => {
      const { version, license, repository } = facts(name);
      const text = here(`node_modules/${name}/LICENSE`);
      const head = `${name} ${version} (${repository.url}): ${license}`;
      return existsSync(text) ? `${head}\n\n${readFileSync(text, "utf8")}` : head;
    })
    .join("\n\n");
}

/** Adds the runtimes, and gives the service worker the list of what the app needs to start. */
function assemble(): Plugin {
  return {
    name: "assemble",
    apply: "build",
    enforce: "post", // the page is among the files then
    generateBundle(_, files) {
      const names = Object.keys(files).filter((name) => name !== "sw.js");
      for (const { module, binary } of Object.values(RUNTIMES)) {
        for (const fileName of [module, binary]) {
          const source = readFileSync(`${ORT}/dist/${fileName.split("/").pop()}`);
          this.emitFile({ type: "asset", fileName, source });
        }
        names.push(module);
      }
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: licenses() });
      names.push(...readdirSync(here("public")), "licenses.txt");
      const contents = Object.values(files).map((file) => (file.type === "chunk" ? file.code : file.source));
      contents.push(...readdirSync(here("public")).map((name) => readFileSync(here(`public/${name}`))));
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
