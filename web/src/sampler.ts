// From a prompt and a seed to a picture: the loop of src/snapgen/pipeline/denoising.py, in fp32 as there.

import type { Latents, Sampling } from "./bundle";
import { seededNoise } from "./noise";
import { TIMESTEP_SCALE, samplingLevels } from "./schedule";

/** What to draw. */
export interface Wish {
  prompt: string;
  seed: bigint;
  steps: number;
  guidance: number; // up to 1: none
  width: number; // px
  height: number;
}

/** What the UNet reads of a text: `states` M D, all of them visible, and a pooled vector if it reads one. */
export interface TextStates {
  states: Float32Array;
  tokens: number; // M
  pooled: Float32Array | null;
}

/** Latents of one picture, C h w. */
export interface Grid {
  values: Float32Array;
  height: number;
  width: number;
}

/** A model's networks. */
export interface Networks {
  latents: Latents;
  sampling: Sampling;
  encode(prompt: string): Promise<TextStates>;
  velocity(x: Grid, timestep: number, text: TextStates): Promise<Float32Array>;
  decode(x: Grid): Promise<Float32Array>; // 3 H W, in about [-1, 1]
}

const LARGEST_SHARE = 1 / 3; // of the time that may go into decoding pictures on the way
const { fround } = Math;

/** The noise that a wish starts from. */
export function startOf({ latents }: Pick<Networks, "latents">, { seed, width, height }: Wish): Grid {
  const size = { height: height / latents.pixels, width: width / latents.pixels };
  return { values: seededNoise(seed, latents.channels * size.height * size.width), ...size };
}

/**
 * The picture, 3 H W in about [-1, 1]; null if `onStep` ends the work by returning false.
 *
 * `onStep` is called after each step with the picture as far as it can be foreseen, or null if that was not decoded.
 */
export async function sample(
  networks: Networks,
  wish: Wish,
  onStep: (step: number, foreseen: Float32Array | null) => Promise<boolean>,
): Promise<Float32Array | null> {
  const text = await networks.encode(wish.prompt);
  const guided = wish.guidance > 1;
  const negative = guided ? await networks.encode("") : null;
  const levels = samplingLevels(wish.steps, networks.sampling.shift);
  const x = startOf(networks, wish);
  const started = performance.now();
  let decoding = 0; // ms
  for (let step = 1; step < levels.length; step++) {
    const [sigma, following] = [levels[step - 1]!, levels[step]!];
    const timestep = fround(TIMESTEP_SCALE * sigma);
    let velocity = await networks.velocity(x, timestep, text);
    if (negative) velocity = guide(velocity, await networks.velocity(x, timestep, negative), wish.guidance);
    if (step === wish.steps) return networks.decode(eulerStep(x, velocity, sigma, following));
    let foreseen: Float32Array | null = null;
    const before = performance.now();
    if (decoding <= LARGEST_SHARE * (before - started)) {
      foreseen = await networks.decode(eulerStep(x, velocity, sigma, 0));
      decoding += performance.now() - before;
    }
    x.values = eulerStep(x, velocity, sigma, following).values;
    if (!(await onStep(step, foreseen))) return null;
  }
  return null;
}

/** The latents at the level `following`, from those at `sigma` and their velocity. */
function eulerStep(x: Grid, velocity: Float32Array, sigma: number, following: number): Grid {
  const stride = fround(following - sigma);
  return { ...x, values: x.values.map((value, index) => value + fround(stride * velocity[index]!)) };
}

/** Away from the negative text. */
function guide(text: Float32Array, negative: Float32Array, scale: number): Float32Array {
  const factor = fround(scale);
  return text.map((value, index) => {
    const before = negative[index]!;
    return before + fround(factor * fround(value - before));
  });
}

/** A picture 3 H W in [-1, 1] (clamped) as RGBA pixels, rounded as in Python. */
export function toPixels(picture: Float32Array): Uint8ClampedArray<ArrayBuffer> {
  const count = picture.length / 3;
  const pixels = new Uint8ClampedArray(4 * count).fill(255);
  for (let color = 0; color < 3; color++) {
    for (let place = 0; place < count; place++) {
      pixels[4 * place + color] = fround(fround(fround(picture[color * count + place]! / 2) + 0.5) * 255);
    }
  }
  return pixels;
}
