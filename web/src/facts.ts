// What a picture's file says of how it was made: the keys of `snapgen generate` (src/snapgen/cli/generate.py).

import type { Bundle } from "./bundle";
import type { Wish } from "./sampler";

const SLUG_LENGTH = 40; // characters of the prompt in a file's name

export function factsOf(wish: Wish, { model, snapgen }: Pick<Bundle, "model" | "snapgen">): Record<string, string> {
  const { prompt, seed, width, height, steps, guidance } = wish;
  return {
    prompt,
    seed: String(seed),
    size: `${width}x${height}`,
    steps: String(steps),
    guidance: Number.isInteger(guidance) ? guidance.toFixed(1) : String(guidance), // as Python writes it
    model,
    snapgen,
  };
}

/** The name of the file. */
export function fileName({ prompt, seed }: Wish): string {
  const slug = prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, SLUG_LENGTH).replace(/^-+|-+$/g, "");
  return `${slug || "picture"}-${seed}.png`;
}
