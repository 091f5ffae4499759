// A bundle's description comes from anywhere: what this app cannot run is said in one sentence.

import { expect, test } from "vitest";

import { filesOf, readBundle, readsPooled } from "../src/bundle";

const ports = (...names: string[]) => names.map((name) => ({ name, dtype: "float32", shape: ["batch"] }));
const file = { bytes: 10, sha256: "0".repeat(64) };
const text = {
  network: "text_encoder",
  tokenizer: "tokenizer.json",
  prefix: "",
  prefix_start: 0,
  prefix_length: 0,
  pad_token: 0,
  tokens: [0, 16],
  columns: [0, 32],
  pooled: true,
};
const good = {
  format: "snapgen-bundle",
  version: 1,
  target: "onnx",
  precision: "w16",
  model: "some/model",
  snapgen: "0.1.0",
  license: null,
  networks: {
    text_encoder: {
      file: "text_encoder.onnx",
      inputs: ports("input_ids", "attention_mask"),
      outputs: ports("states"),
    },
    unet: {
      file: "unet.onnx",
      inputs: ports("sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"),
      outputs: ports("velocity"),
    },
    decoder: { file: "decoder.onnx", inputs: ports("latents"), outputs: ports("picture") },
  },
  texts: [text],
  latents: { channels: 16, height: 4, width: 4, multiple: 4, fixed: false, pixels: 8 },
  sampling: { steps: 4, guidance: 1, shift: 3 },
  known_words: { nouns: ["cat"] },
  golden: { seed: 0, noise: [] },
  parity: { inputs: 20, relative_error: {}, psnr: [] },
  files: { "text_encoder.onnx": file, "unet.onnx": file, "decoder.onnx": file, "tokenizer.json": file },
};

/** The good description with one part changed. */
function changed(path: string, value: unknown): object {
  const copy = structuredClone(good) as Record<string, unknown>;
  const keys = path.split(".");
  let place = copy;
  for (const key of keys.slice(0, -1)) place = place[key] as Record<string, unknown>;
  place[keys.at(-1)!] = value;
  return copy;
}

test("a bundle is read", () => {
  const bundle = readBundle(good);
  expect(bundle.texts).toEqual([
    {
      network: "text_encoder",
      tokenizer: "tokenizer.json",
      prefix: "",
      prefixStart: 0,
      prefixLength: 0,
      tokens: [0, 16],
      columns: [0, 32],
      pooled: true,
    },
  ]);
  expect(bundle.latents).toEqual({ channels: 16, height: 4, width: 4, multiple: 4, pixels: 8 });
  expect(bundle.knownWords).toEqual({ nouns: ["cat"] });
  expect(filesOf(bundle).sort()).toEqual(Object.keys(good.files).sort());
  expect(readsPooled(bundle)).toBe(false);
});

test("text encoders may be absent", () => {
  const absent = { network: "text_encoder_3", tokenizer: null, tokens: [16, 20], columns: [0, 64], pooled: false };
  const bundle = readBundle(changed("texts", [text, absent]));
  expect(Object.keys(bundle.networks)).toEqual(["text_encoder", "unet", "decoder"]);
  expect(() => readBundle(changed("texts", [absent]))).toThrow("The model has no text encoder");
});

test.each([
  ["format", "other", "does not describe a model for this app"],
  ["version", 2, "format version 2, but this app reads version 1"],
  ["target", "coreml", 'exported for "coreml", not for onnx'],
  ["latents.fixed", true, "exported for one size"],
  ["latents.channels", -1, "latents.channels is -1"],
  ["latents.multiple", 1e12, "latents.multiple is 1000000000000"],
  ["sampling.steps", 1e9, "sampling.steps is 1000000000"],
  ["sampling.shift", "3", 'sampling.shift is "3"'],
  ["texts.0.tokenizer", "../secret", 'texts.tokenizer is "../secret"'],
  ["texts.0.tokens", [0, 1e9], "texts.tokens is 1000000000"],
  ["texts.0.tokens", [5, 5], "texts.tokens is no span"],
  ["texts.0.network", "__proto__", 'texts.network is "__proto__"'],
  ["networks.unet", null, "networks.unet is missing"],
  ["networks.unet.file", "https://elsewhere/unet.onnx", "networks.unet.file is"],
  ["networks.unet.file", "other.onnx", "files does not list other.onnx"],
  ["networks.unet.outputs", [], "networks.unet has no velocity"],
  ["networks.decoder.inputs", ports("latents", "noise"), "decoder needs noise"],
  ["files", { "unet.onnx": { bytes: 1, sha256: "zz" } }, "files has no hash of unet.onnx"],
  ["known_words", { nouns: "cat" }, "known_words is no list"],
])("%s: %j is refused", (path, value, message) => {
  expect(() => readBundle(changed(path, value))).toThrow(message);
});

test.each([null, [], "text", 3])("%j is no bundle", (content) => {
  expect(() => readBundle(content)).toThrow("The model's bundle.json is damaged: bundle.json is missing.");
});
