import { expect, test } from "vitest";

import { judge, relativeError } from "../src/choice";
import { readSeed, sides } from "../src/limits";
import { Problem, explain } from "../src/problem";

test("sides are multiples of what the networks take, from half the model's own", () => {
  expect(sides(16, { multiple: 4, pixels: 8 })).toEqual([64, 96, 128, 160, 192, 224, 256]);
  expect(sides(4, { multiple: 2, pixels: 8 })).toEqual([16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256]);
  expect(sides(128, { multiple: 32, pixels: 8 }).at(-1)).toBe(1024);
});

test.each([
  ["0", 0n],
  [" 12 ", 12n],
  ["9223372036854775807", 2n ** 63n - 1n],
  ["9223372036854775808", null],
  ["-1", null],
  ["1.5", null],
  ["cat", null],
])("seed '%s'", (text, seed) => {
  expect(readSeed(text, 0)).toBe(seed);
});

test("a seed leaves room for further pictures, and none means a new one", () => {
  expect(readSeed("9223372036854775807", 1)).toBeNull();
  const seeds = new Set(Array.from({ length: 5 }, () => readSeed("", 0)));
  expect(seeds.size).toBeGreaterThan(1);
  for (const seed of seeds) expect(seed! >= 0n && seed! < 2n ** 32n).toBe(true);
});

test("the graphics processor has to be exact and faster", () => {
  const reference = { velocity: Float32Array.of(3, 4), seconds: 1 };
  const exact = Float32Array.of(3, 4.0001);
  expect(relativeError(exact, reference.velocity)).toBeCloseTo(2e-5, 6);
  judge(reference, { velocity: exact, seconds: 0.5 });
  expect(() => judge(reference, { velocity: exact, seconds: 2 })).toThrow("no faster here: 2.00 s a step, 1.00 s without");
  for (const velocity of [Float32Array.of(3, 4.1), Float32Array.of(3, NaN), Float32Array.of(3)]) {
    expect(() => judge(reference, { velocity, seconds: 0.5 })).toThrow("computes other numbers");
  }
});

test("errors are said in words", () => {
  expect(explain(new Problem("It is gone."), "draw")).toBe("It is gone.");
  for (const error of [new RangeError("Array buffer allocation failed"), new Error("std::bad_alloc"), "Out of memory"]) {
    expect(explain(error, "draw this")).toMatch(/^There is not enough memory to draw this\./);
  }
  expect(explain(new Error("odd"), "draw this")).toBe("Could not draw this: odd");
});
