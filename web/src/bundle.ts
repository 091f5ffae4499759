// The description of a model, bundle.json (src/snapgen/runtime/bundle.py): checked, since it may come from anywhere.

import { Problem } from "./problem";
import type { KnownWords } from "./words";

export const BUNDLE = "bundle.json";
const VERSION = 1;
const FILE_PATH = /^(?=.{1,200}$)[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*){0,5}$/;
const LARGEST = 2 ** 31;

export interface Network {
  file: string;
  inputs: string[]; // names
  outputs: string[];
}

export interface Text {
  tokenizer: string;
  prefix: string; // put before every prompt
  prefixStart: number; // tokens before the prefix's
  prefixLength: number; // the prefix's tokens, whose states are omitted
  tokens: number; // that are read at most, without the prefix
  width: number; // of a state
}

export interface Latents {
  channels: number;
  height: number; // by default
  width: number;
  multiple: number; // that sides must be of
  fixed: boolean;
  pixels: number; // per latent position, along each side
}

export interface Sampling {
  steps: number;
  guidance: number;
  shift: number;
}

export interface FileFacts {
  bytes: number;
  sha256: string;
}

export interface Bundle {
  model: string;
  snapgen: string;
  license: string | null;
  networks: { text_encoder: Network; unet: Network; decoder: Network };
  text: Text;
  latents: Latents;
  sampling: Sampling;
  knownWords: KnownWords | null;
  files: Record<string, FileFacts>;
}

// The ports that the app calls.
const PORTS = {
  text_encoder: { inputs: ["input_ids", "attention_mask"], outputs: ["states"] },
  unet: {
    inputs: ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"],
    outputs: ["velocity"],
  },
  decoder: { inputs: ["latents"], outputs: ["picture"] },
};
const POOLED = { unet: "pooled_projections", text_encoder: "pooled" }; // of networks that read a pooled vector, too

/** The bundle that `content`, the parsed bundle.json, describes; a Problem if this app cannot run it. */
export function readBundle(content: unknown): Bundle {
  const root = record(content, BUNDLE);
  if (root.format !== "snapgen-bundle") throw new Problem(`${BUNDLE} does not describe a model for this app.`);
  if (root.version !== VERSION) {
    throw new Problem(
      `The model is of format version ${show(root.version)}, but this app reads version ${VERSION}: export it again.`,
    );
  }
  if (root.target !== "onnx") throw new Problem(`The model was exported for ${show(root.target)}, not for onnx.`);
  const texts = list(root.texts, "texts");
  if (texts.length !== 1) {
    throw new Problem(`The model has ${texts.length} text encoders; this app runs models with one.`);
  }
  const files = readFiles(root.files);
  const text = readText(texts[0]);
  const networks = record(root.networks, "networks");
  const bundle = {
    model: string(root.model, "model"),
    snapgen: string(root.snapgen, "snapgen"),
    license: root.license == null ? null : string(root.license, "license"),
    networks: {
      text_encoder: readNetwork(networks, "text_encoder"),
      unet: readNetwork(networks, "unet"),
      decoder: readNetwork(networks, "decoder"),
    },
    text,
    latents: readLatents(root.latents),
    sampling: readSampling(root.sampling),
    knownWords: root.known_words == null ? null : readWords(root.known_words),
    files,
  };
  const named = [text.tokenizer, ...Object.values(bundle.networks).map((network) => network.file)];
  const unlisted = named.find((name) => !Object.hasOwn(files, name));
  if (unlisted) damaged(`files does not list ${unlisted}`);
  return bundle;
}

/** Whether the UNet also reads the text encoder's pooled vector. */
export function readsPooled(bundle: Bundle): boolean {
  return bundle.networks.unet.inputs.includes(POOLED.unet);
}

function readNetwork(networks: Record<string, unknown>, name: keyof typeof PORTS): Network {
  const network = record(networks[name], `networks.${name}`);
  const ports = (kind: "inputs" | "outputs") =>
    list(network[kind], `networks.${name}.${kind}`).map((port) => string(record(port, name).name, `${name}.${kind}`));
  const found = { file: filePath(network.file, `networks.${name}.file`), inputs: ports("inputs"), outputs: ports("outputs") };
  const missing = [
    ...PORTS[name].inputs.filter((port) => !found.inputs.includes(port)),
    ...PORTS[name].outputs.filter((port) => !found.outputs.includes(port)),
  ];
  if (missing.length) damaged(`networks.${name} has no ${missing[0]}`);
  const extra = found.inputs.find((port) => !PORTS[name].inputs.includes(port));
  if (extra !== undefined && !(name === "unet" && extra === POOLED.unet)) {
    throw new Problem(`The model's ${name} needs ${extra}, which this app does not know.`);
  }
  return found;
}

function readText(value: unknown): Text {
  const text = record(value, "texts");
  const [tokens, columns] = [span(text.tokens, "tokens"), span(text.columns, "columns")];
  if (text.network !== "text_encoder" || tokens[0] !== 0 || columns[0] !== 0) {
    throw new Problem("The model leaves room for other text encoders; this app runs models with exactly one.");
  }
  return {
    tokenizer: filePath(text.tokenizer, "texts.tokenizer"),
    prefix: string(text.prefix ?? "", "texts.prefix"),
    prefixStart: number(text.prefix_start ?? 0, "texts.prefix_start", 0),
    prefixLength: number(text.prefix_length ?? 0, "texts.prefix_length", 0),
    tokens: tokens[1],
    width: columns[1],
  };
}

function readLatents(value: unknown): Latents {
  const latents = record(value, "latents");
  const count = (key: string) => number(latents[key], `latents.${key}`, 1);
  return {
    channels: count("channels"),
    height: count("height"),
    width: count("width"),
    multiple: count("multiple"),
    fixed: latents.fixed === true,
    pixels: count("pixels"),
  };
}

function readSampling(value: unknown): Sampling {
  const sampling = record(value, "sampling");
  const real = (key: string) => {
    const found = sampling[key];
    if (typeof found !== "number" || !Number.isFinite(found) || found < 0) damaged(`sampling.${key} is ${show(found)}`);
    return found as number;
  };
  return { steps: number(sampling.steps, "sampling.steps", 1, 1000), guidance: real("guidance"), shift: real("shift") };
}

function readWords(value: unknown): KnownWords {
  const entries = Object.entries(record(value, "known_words"));
  return Object.fromEntries(
    entries.map(([kind, words]) => [kind, list(words, "known_words").map((word) => string(word, "known_words"))]),
  );
}

function readFiles(value: unknown): Record<string, FileFacts> {
  const entries = Object.entries(record(value, "files")).map(([path, facts]) => {
    const { bytes, sha256 } = record(facts, "files");
    if (typeof sha256 !== "string" || !/^[0-9a-f]{64}$/.test(sha256)) damaged(`files has no hash of ${path}`);
    return [filePath(path, "files"), { bytes: number(bytes, "files", 0, Number.MAX_SAFE_INTEGER), sha256 }];
  });
  return Object.fromEntries(entries);
}

function record(value: unknown, name: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) damaged(`${name} is missing`);
  return value as Record<string, unknown>;
}

function list(value: unknown, name: string): unknown[] {
  if (!Array.isArray(value)) damaged(`${name} is no list`);
  return value as unknown[];
}

function string(value: unknown, name: string): string {
  if (typeof value !== "string") damaged(`${name} is no text`);
  return value as string;
}

function number(value: unknown, name: string, lowest: number, highest = LARGEST): number {
  if (!Number.isInteger(value) || (value as number) < lowest || (value as number) > highest) {
    damaged(`${name} is ${show(value)}`);
  }
  return value as number;
}

function span(value: unknown, name: string): [number, number] {
  const ends = list(value, `texts.${name}`);
  const [first, last] = [number(ends[0], `texts.${name}`, 0), number(ends[1], `texts.${name}`, 1)];
  if (ends.length !== 2 || first >= last) damaged(`texts.${name} is no span`);
  return [first, last];
}

function filePath(value: unknown, name: string): string {
  if (typeof value !== "string" || !FILE_PATH.test(value)) damaged(`${name} is ${show(value)}`);
  return value as string;
}

function show(value: unknown): string {
  return String(JSON.stringify(value)).slice(0, 60);
}

function damaged(what: string): never {
  throw new Problem(`The model's ${BUNDLE} is damaged: ${what}.`);
}
