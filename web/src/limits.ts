// What the visitor may ask for.

import type { Latents } from "./bundle";

const LARGEST_SIDE = 256; // px; a model that makes larger pictures by itself keeps its own size
const LARGEST_SEED = 2n ** 63n - 1n;

/** The sides in px that are offered, from half the model's own, which is `side` latents. */
export function sides(side: number, { multiple, pixels }: Pick<Latents, "multiple" | "pixels">): number[] {
  const unit = multiple * pixels;
  const last = Math.max(LARGEST_SIDE, side * pixels);
  const found = [];
  for (let value = Math.ceil((side * pixels) / 2 / unit) * unit; value <= last; value += unit) found.push(value);
  return found;
}

/** The seed that `text` says, or a new one for none; null if it is no seed, or leaves no room for `more` after it. */
export function readSeed(text: string, more: number): bigint | null {
  const trimmed = text.trim();
  if (!trimmed) return BigInt(Math.floor(2 ** 32 * Math.random()));
  if (!/^\d{1,19}$/.test(trimmed)) return null;
  const found = BigInt(trimmed);
  return found + BigInt(more) <= LARGEST_SEED ? found : null;
}
