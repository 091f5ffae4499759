// A bundle's networks, run by onnxruntime-web.

import type * as Ort from "onnxruntime-web";

import { BUNDLE, type Bundle, type FileFacts, type NetworkName, type Text, filesOf, readBundle, readsPooled } from "./bundle";
import { type OnBytes, areKept, getFile, keepOnly, openCache, request } from "./files";
import { Problem } from "./problem";
import type { Runtime } from "./protocol";
import type { Grid, Networks, TextStates } from "./sampler";
import { type Tokens, tokenizerFrom } from "./tokens";

const ERRORS_ONLY = 3; // of the log of the runtime

type Sessions = Partial<Record<NetworkName, Ort.InferenceSession>>;
type Feeds = Record<string, Ort.Tensor>;
type Tokenize = (text: string) => Tokens;

/** A model that is described, but not loaded. */
export class ModelFiles {
  private constructor(
    private readonly base: URL,
    private readonly cache: Cache | null,
    private readonly runtime: Runtime,
    readonly bundle: Bundle,
  ) {}

  /** Reads the description of the model in the folder `model/` of `base`. */
  static async find(base: URL, runtime: Runtime): Promise<ModelFiles> {
    const response = await request(new URL(`model/${BUNDLE}`, base), BUNDLE, { cache: "no-store" });
    let content: unknown;
    try {
      content = await response.json();
    } catch {
      throw new Problem(`The model's ${BUNDLE} is damaged: it is not JSON.`);
    }
    return new ModelFiles(base, await openCache(base), runtime, readBundle(content));
  }

  /** Bytes that must be loaded, or are kept already. */
  get bytes(): number {
    return this.needed.reduce((sum, facts) => sum + facts.bytes, 0);
  }

  /** Whether nothing must be fetched. */
  get kept(): Promise<boolean> {
    return areKept(this.needed, this.cache);
  }

  /** Loads the runtime and the networks. */
  async load(threads: number, onBytes: OnBytes): Promise<Model> {
    const { networks, texts, files } = this.bundle;
    const runtime = RUNTIMES[this.runtime];
    const load = (name: string) => getFile(new URL(`model/${name}`, this.base), files[name]!, this.cache, onBytes);
    const binary = getFile(new URL(runtime.binary, this.base), runtime.facts, this.cache, onBytes);
    const [program, ...contents] = await Promise.all([binary, ...filesOf(this.bundle).map(load)]);
    const loaded = new Map(filesOf(this.bundle).map((name, index) => [name, contents[index]!]));
    const ort: typeof Ort = await import(/* @vite-ignore */ new URL(runtime.module, this.base).href);
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = program;
    const sessions: Sessions = {};
    for (const [name, { file }] of Object.entries(networks)) {
      sessions[name as NetworkName] = await ort.InferenceSession.create(new Uint8Array(loaded.get(file)!), {
        executionProviders: [this.runtime],
        graphOptimizationLevel: "all",
        logSeverityLevel: ERRORS_ONLY,
      });
    }
    delete ort.env.wasm.wasmBinary;
    const everything = [...Object.values(files), ...Object.values(RUNTIMES).map(({ facts }) => facts)];
    await keepOnly(everything, this.cache);
    const read = ({ tokenizer, prefixLength, tokens: [first, end] }: Text): Tokenize | null => {
      if (tokenizer === null) return null;
      return tokenizerFrom(JSON.parse(new TextDecoder().decode(loaded.get(tokenizer))), prefixLength + end - first);
    };
    return new Model(ort, this.bundle, sessions, texts.map(read));
  }

  private get needed(): FileFacts[] {
    return [...filesOf(this.bundle).map((name) => this.bundle.files[name]!), RUNTIMES[this.runtime].facts];
  }
}

/** A loaded model. */
export class Model implements Networks {
  readonly latents;
  readonly sampling;

  /** `tokenize`: for each of the bundle's texts; null for those that it does not hold. */
  constructor(
    private readonly ort: typeof Ort,
    private readonly bundle: Bundle,
    private readonly sessions: Sessions,
    private readonly tokenize: (Tokenize | null)[],
  ) {
    this.latents = bundle.latents;
    this.sampling = bundle.sampling;
  }

  /** Whether a text encoder does not read all of `prompt`. */
  isCut(prompt: string): boolean {
    return this.bundle.texts.some(({ prefix }, index) => this.tokenize[index]?.(prefix + prompt).cut);
  }

  /** The states of `prompt` as all text encoders read it, joined, without tokens that nobody sees. */
  async encode(prompt: string): Promise<TextStates> {
    const { texts } = this.bundle;
    const width = Math.max(...texts.map(({ columns }) => columns[1]));
    const summaries = texts.filter((text) => text.pooled).map(({ columns }) => columns[1]);
    const pooled = readsPooled(this.bundle) ? new Float32Array(Math.max(0, ...summaries)) : null;
    const rows = new Map<number, Float32Array>(); // of the tokens that are seen
    const row = (token: number) => {
      if (!rows.has(token)) rows.set(token, new Float32Array(width));
      return rows.get(token)!;
    };
    for (const [index, text] of texts.entries()) {
      const [first, column] = [text.tokens[0], text.columns[0]];
      const tokenize = this.tokenize[index];
      if (!tokenize || !prompt.trim()) {
        row(first); // no text: zeros, and only the first token is seen
        continue;
      }
      const { ids } = tokenize(text.prefix + prompt);
      const found = await this.run(text.network, {
        input_ids: this.integers(ids),
        attention_mask: this.integers(ids.map(() => 1)),
      });
      const own = found.states!.length / ids.length;
      // The token that starts every text stays; the prefix's own are omitted.
      const kept = ids.map((_, token) => token).filter((token) => !isPrefix(token, text));
      for (const [place, token] of kept.entries()) {
        row(first + place).set(found.states!.subarray(token * own, (token + 1) * own), column);
      }
      if (pooled && text.pooled) pooled.set(found.pooled!, column);
    }
    const seen = [...rows.keys()].sort((one, other) => one - other);
    const states = new Float32Array(seen.length * width);
    for (const [place, token] of seen.entries()) states.set(rows.get(token)!, place * width);
    return { states, tokens: seen.length, pooled };
  }

  async velocity(x: Grid, timestep: number, text: TextStates): Promise<Float32Array> {
    const width = text.states.length / text.tokens;
    const feeds: Feeds = {
      sample: this.grid(x),
      timestep: this.floats(Float32Array.of(timestep), [1]),
      encoder_hidden_states: this.floats(text.states, [1, text.tokens, width]),
      encoder_attention_mask: this.integers(Array.from({ length: text.tokens }, () => 1)),
    };
    if (text.pooled) feeds.pooled_projections = this.floats(text.pooled, [1, text.pooled.length]);
    return (await this.run("unet", feeds)).velocity!;
  }

  async decode(x: Grid): Promise<Float32Array> {
    return (await this.run("decoder", { latents: this.grid(x) })).picture!;
  }

  /** The outputs of a network by name, copied out of the runtime's memory. */
  private async run(name: NetworkName, feeds: Feeds): Promise<Record<string, Float32Array>> {
    const outputs = await this.sessions[name]!.run(feeds);
    const found: Record<string, Float32Array> = {};
    for (const [port, tensor] of Object.entries(outputs)) {
      found[port] = (await tensor.getData()) as Float32Array;
      tensor.dispose();
    }
    return found;
  }

  private grid({ values, height, width }: Grid): Ort.Tensor {
    return this.floats(values, [1, values.length / (height * width), height, width]);
  }

  private floats(values: Float32Array, shape: number[]): Ort.Tensor {
    return new this.ort.Tensor("float32", values, shape);
  }

  private integers(values: number[]): Ort.Tensor {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  }
}

function isPrefix(token: number, { prefixStart, prefixLength }: Text): boolean {
  return token >= prefixStart && token < prefixStart + prefixLength;
}
