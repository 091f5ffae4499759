// A bundle's networks, run by onnxruntime-web.

import type * as Ort from "onnxruntime-web";

import { BUNDLE, type Bundle, type FileFacts, readBundle, readsPooled } from "./bundle";
import { type OnBytes, areKept, getFile, keepOnly, openCache, request } from "./files";
import { Problem } from "./problem";
import type { Runtime } from "./protocol";
import type { Grid, Networks, TextStates } from "./sampler";
import { type Tokens, tokenizerFrom } from "./tokens";

type Session = Ort.InferenceSession;
type Feeds = Record<string, Ort.Tensor>;

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
    const response = await request(new URL(`model/${BUNDLE}`, base), BUNDLE, { cache: "no-cache" });
    let content: unknown;
    try {
      content = await response.json();
    } catch {
      throw new Problem(`The model's ${BUNDLE} is damaged: it is not JSON.`);
    }
    return new ModelFiles(base, await openCache(), runtime, readBundle(content));
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
    const { networks, text, files } = this.bundle;
    const runtime = RUNTIMES[this.runtime];
    const file = (name: string) =>
      getFile(new URL(`model/${name}`, this.base), files[name]!, this.cache, onBytes);
    const [binary, tokenizer, encoder, unet, decoder] = await Promise.all([
      getFile(new URL(runtime.binary, this.base), runtime.facts, this.cache, onBytes),
      file(text.tokenizer),
      file(networks.text_encoder.file),
      file(networks.unet.file),
      file(networks.decoder.file),
    ]);
    const ort: typeof Ort = await import(/* @vite-ignore */ new URL(runtime.module, this.base).href);
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmBinary = binary;
    const settings = { executionProviders: [this.runtime], graphOptimizationLevel: "all" } as const;
    const open = (content: ArrayBuffer) => ort.InferenceSession.create(new Uint8Array(content), settings);
    const sessions = { text_encoder: await open(encoder), unet: await open(unet), decoder: await open(decoder) };
    delete ort.env.wasm.wasmBinary;
    const everything = [...Object.values(files), ...Object.values(RUNTIMES).map(({ facts }) => facts)];
    await keepOnly(everything, this.cache);
    return new Model(ort, this.bundle, sessions, JSON.parse(new TextDecoder().decode(tokenizer)));
  }

  private get needed(): FileFacts[] {
    const { networks, text, files } = this.bundle;
    const names = [...Object.values(networks).map((network) => network.file), text.tokenizer];
    return [...names.map((name) => files[name]!), RUNTIMES[this.runtime].facts];
  }
}

/** A loaded model. */
export class Model implements Networks {
  readonly latents;
  readonly sampling;
  private readonly tokenize: (text: string) => Tokens;

  constructor(
    private readonly ort: typeof Ort,
    private readonly bundle: Bundle,
    private readonly sessions: Record<keyof Bundle["networks"], Session>,
    tokenizer: object,
  ) {
    this.latents = bundle.latents;
    this.sampling = bundle.sampling;
    this.tokenize = tokenizerFrom(tokenizer, bundle.text.prefixLength + bundle.text.tokens);
  }

  /** Whether the model does not read all of `prompt`. */
  isCut(prompt: string): boolean {
    return this.tokenize(this.bundle.text.prefix + prompt).cut;
  }

  /** The text states of `prompt`; for the empty one zeros, of which one is visible. */
  async encode(prompt: string): Promise<TextStates> {
    const { prefix, prefixStart, prefixLength, width } = this.bundle.text;
    const pooled = readsPooled(this.bundle);
    if (!prompt.trim()) {
      return { states: new Float32Array(width), tokens: 1, pooled: pooled ? new Float32Array(width) : null };
    }
    const { ids } = this.tokenize(prefix + prompt);
    const found = await this.run("text_encoder", {
      input_ids: this.integers(ids),
      attention_mask: this.integers(ids.map(() => 1)),
    });
    const states = found.states!;
    // The token that starts every text stays; the prefix's own are omitted.
    const kept = new Float32Array(states.length - prefixLength * width);
    kept.set(states.subarray(0, prefixStart * width));
    kept.set(states.subarray((prefixStart + prefixLength) * width), prefixStart * width);
    return { states: kept, tokens: ids.length - prefixLength, pooled: pooled ? found.pooled! : null };
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
  private async run(name: keyof Bundle["networks"], feeds: Feeds): Promise<Record<string, Float32Array>> {
    const outputs = await this.sessions[name].run(feeds);
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
