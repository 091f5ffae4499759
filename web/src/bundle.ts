// The description of a model, bundle.json (src/snapgen/runtime/bundle.py): checked, since it may come from anywhere.

import { Problem } from "./problem";
import type { KnownWords } from "./words";

export const BUNDLE = "bundle.json";
const VERSION = 1;
const FILE_PATH = /^(?=.{1,200}$)[A-Za-z0-9][\w.-]*(\/[A-Za-z0-9][\w.-]*){0,5}$/;
const LARGEST = 2 ** 31;
const LONGEST = 2 ** 14; // of text states, along each side

export interface Network {
  file: string;
  inputs: string[]; // names
  outputs: string[];
}

export interface Text {
  network: TextNetwork;
  tokenizer: string | null; // null: the bundle does not hold this encoder, and it reads the empty prompt
  prefix: string; // put before every prompt
  prefixStart: number; // tokens before the prefix's
  prefixLength: number; // the prefix's tokens, whose states are omitted
  tokens: Span; // of the joined states; their number is the most that is read
  columns: Span;
  pooled: boolean; // whether it has a pooled vector, in the same columns of the joined one
}

export type Span = [first: number, end: number];

export interface Latents {
  channels: number;
  height: number; // by default
  width: number;
  multiple: number; // that sides must be of
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
  networks: Partial<Record<NetworkName, Network>>;
  texts: Text[];
  latents: Latents;
  sampling: Sampling;
  knownWords: KnownWords | null;
  files: Record<string, FileFacts>;
}

export const TEXT_NETWORKS = ["text_encoder", "text_encoder_2", "text_encoder_3"] as const;
export type TextNetwork = (typeof TEXT_NETWORKS)[number];
export type NetworkName = TextNetwork | "unet" | "decoder";

interface Ports {
  inputs: string[];
  outputs: string[];
}

// What the app gives to the networks and takes from them.
const TEXT_PORTS: Ports = { inputs: ["input_ids", "attention_mask"], outputs: ["states"] };
const PORTS: Record<NetworkName, Ports> = {
  text_encoder: TEXT_PORTS,
  text_encoder_2: TEXT_PORTS,
  text_encoder_3: TEXT_PORTS,
  unet: {
    inputs: ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"],
    outputs: ["velocity"],
  },
  decoder: { inputs: ["latents"], outputs: ["picture"] },
};
const POOLED_INPUT = "pooled_projections"; // of a UNet that also reads a pooled vector

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
  const files = readFiles(root.files);
  const texts = list(root.texts, "texts").map(readText);
  const present = texts.filter((text) => text.tokenizer !== null).map((text) => text.network);
  if (!present.length) throw new Problem("The model has no text encoder: it cannot draw from words.");
  const networks = record(root.networks, "networks");
  const names: NetworkName[] = [...present, "unet", "decoder"];
  const bundle: Bundle = {
    model: string(root.model, "model"),
    snapgen: string(root.snapgen, "snapgen"),
    license: root.license == null ? null : string(root.license, "license"),
    networks: Object.fromEntries(names.map((name) => [name, readNetwork(networks[name], name)])),
    texts,
    latents: readLatents(root.latents),
    sampling: readSampling(root.sampling),
    knownWords: root.known_words == null ? null : readWords(root.known_words),
    files,
  };
  const unlisted = filesOf(bundle).find((name) => !Object.hasOwn(files, name));
  if (unlisted) damaged(`files does not list ${unlisted}`);
  return bundle;
}

/** The names of the files that drawing needs. */
export function filesOf({ networks, texts }: Bundle): string[] {
  const tokenizers = texts.flatMap(({ tokenizer }) => tokenizer ?? []);
  return [...new Set([...tokenizers, ...Object.values(networks).map((network) => network.file)])];
}

/** Whether the UNet also reads the text encoder's pooled vector. */
export function readsPooled(bundle: Bundle): boolean {
  return bundle.networks.unet!.inputs.includes(POOLED_INPUT);
}

function readNetwork(value: unknown, name: NetworkName): Network {
  const network = record(value, `networks.${name}`);
  const ports = (kind: keyof Ports) =>
    list(network[kind], `networks.${name}.${kind}`).map((port) => string(record(port, kind).name, `${name}.${kind}`));
  const found = {
    file: filePath(network.file, `networks.${name}.file`),
    inputs: ports("inputs"),
    outputs: ports("outputs"),
  };
  const { inputs, outputs } = PORTS[name];
  const missing =
    inputs.find((port) => !found.inputs.includes(port)) ?? outputs.find((port) => !found.outputs.includes(port));
  if (missing) damaged(`networks.${name} has no ${missing}`);
  const extra = found.inputs.find((port) => !inputs.includes(port));
  if (extra !== undefined && !(name === "unet" && extra === POOLED_INPUT)) {
    throw new Problem(`The model's ${name} needs ${extra}, which this app does not know.`);
  }
  return found;
}

function readText(value: unknown): Text {
  const text = record(value, "texts");
  const network = TEXT_NETWORKS.find((name) => name === text.network);
  if (!network) damaged(`texts.network is ${show(text.network)}`);
  return {
    network: network as TextNetwork,
    tokenizer: text.tokenizer == null ? null : filePath(text.tokenizer, "texts.tokenizer"),
    prefix: string(text.prefix ?? "", "texts.prefix"),
    prefixStart: number(text.prefix_start ?? 0, "texts.prefix_start", 0),
    prefixLength: number(text.prefix_length ?? 0, "texts.prefix_length", 0),
    tokens: span(text.tokens, "tokens"),
    columns: span(text.columns, "columns"),
    pooled: text.pooled === true,
  };
}

function readLatents(value: unknown): Latents {
  const latents = record(value, "latents");
  if (latents.fixed !== false) throw new Problem("The model was exported for one size; this app needs one for any.");
  const count = (key: string) => number(latents[key], `latents.${key}`, 1);
  return {
    channels: count("channels"),
    height: count("height"),
    width: count("width"),
    multiple: count("multiple"),
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

function span(value: unknown, name: string): Span {
  const ends = list(value, `texts.${name}`);
  const [first, last] = [number(ends[0], `texts.${name}`, 0), number(ends[1], `texts.${name}`, 1, LONGEST)];
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
