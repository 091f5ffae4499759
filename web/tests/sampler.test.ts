import { expect, test } from "vitest";

import { type Networks, sample, startOf, toPixels } from "../src/sampler";

const wish = { prompt: "a cat", seed: 3n, steps: 5, guidance: 1, width: 16, height: 8 };
const latents = { channels: 16, height: 2, width: 2, multiple: 1, pixels: 4 };
const sampling = { steps: 5, guidance: 1, shift: 3 };
const size = 16 * 2 * 4;

/** Networks of which the right answer is known: the velocity leads to `target`, in a straight line. */
function straight(target: (tokens: number) => number): Networks {
  return {
    latents,
    sampling,
    encode: async (prompt) => ({ states: new Float32Array(8), tokens: prompt ? 2 : 1, pooled: null }),
    velocity: async (x, timestep, text) => x.values.map((value) => (value - target(text.tokens)) / (timestep / 1000)),
    decode: async (x) => x.values,
  };
}

test("steps lead to the picture, and foresee it on the way", async () => {
  const steps: number[] = [];
  const picture = await sample(straight(() => 0.5), wish, async (step, foreseen) => {
    steps.push(step);
    for (const value of foreseen ?? []) expect(value).toBeCloseTo(0.5, 5);
    return true;
  });
  expect(steps).toEqual([1, 2, 3, 4]);
  expect(picture).toHaveLength(size);
  for (const value of picture!) expect(value).toBeCloseTo(0.5, 5);
});

test("the first step is shown, and work ends when asked", async () => {
  const shown: boolean[] = [];
  const picture = await sample(straight(() => 0.5), wish, async (step, foreseen) => {
    shown.push(foreseen !== null);
    return step < 2;
  });
  expect(picture).toBeNull();
  expect(shown).toHaveLength(2);
  expect(shown[0]).toBe(true);
});

test("guidance leads away from the empty prompt", async () => {
  const networks = straight((tokens) => (tokens === 2 ? 0.5 : 0.25));
  const picture = await sample(networks, { ...wish, guidance: 3, steps: 1 }, async () => true);
  for (const value of picture!) expect(value).toBeCloseTo(0.25 + 3 * 0.25, 5);
});

test("noise has the size of the picture's latents", () => {
  const start = startOf({ latents }, wish);
  expect([start.height, start.width, start.values.length]).toEqual([2, 4, size]);
});

test("pixels are rounded as in Python: to even, and clamped", () => {
  // 0.5 and 1.5 of 255 are rounded to 0 and 2.
  const levels = [0.5 / 255, 1.5 / 255, -3, 7].map((level) => Math.fround(2 * level - 1));
  const half = toPixels(Float32Array.from([...levels, ...levels, ...levels]));
  expect(half).toHaveLength(16);
  expect([half[3], half[7], half[11], half[15]]).toEqual([255, 255, 255, 255]);
  expect([half[8], half[12]]).toEqual([0, 255]);
  expect(half[4]! - half[0]!).toBeGreaterThan(0);
  expect(toPixels(Float32Array.of(0, 0, 0))).toEqual(Uint8ClampedArray.of(128, 128, 128, 255)); // 127.5
});
