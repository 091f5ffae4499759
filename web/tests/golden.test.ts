// What must be as in Python: golden.json is written by scripts/web_golden.py.

import { createHash } from "node:crypto";

import { describe, expect, test } from "vitest";

import { seededNoise } from "../src/noise";
import { samplingLevels } from "../src/schedule";
import { tokenizerFrom } from "../src/tokens";
import { unknownWords } from "../src/words";
import golden from "./golden.json";

describe("noise", () => {
  test.each(golden.noise)("of seed $seed, $count numbers", ({ seed, count, ends, sha256 }) => {
    const noise = seededNoise(BigInt(seed), count);
    expect([noise[0], noise[count - 1]]).toEqual(ends);
    expect(createHash("sha256").update(new Uint8Array(noise.buffer)).digest("hex")).toBe(sha256);
  });

  test("too few numbers are refused", () => {
    expect(() => seededNoise(0n, 15)).toThrow("noise of 15 numbers, expected at least 16");
  });
});

test.each(golden.schedules)("levels of $steps steps with shift $shift", ({ steps, shift, levels }) => {
  expect(samplingLevels(steps, shift)).toEqual(levels);
});

test("no steps are refused", () => {
  expect(() => samplingLevels(0, 1)).toThrow("number of steps is 0, expected at least 1");
});

test.each(golden.unknown)("unknown words of '$text'", ({ text, words }) => {
  const found = unknownWords(text, golden.known);
  expect([...new Set(found.map((word) => word.text))]).toEqual(words);
  for (const word of found) expect(text.slice(word.start, word.end).toLowerCase()).toBe(word.text);
});

describe("tokens", () => {
  const longest = Math.max(...golden.tokens.map(({ ids }) => ids.length));
  const tokenize = tokenizerFrom(golden.tokenizer, longest);

  test.each(golden.tokens)("of '$text'", ({ text, ids }) => {
    expect(tokenize(text).ids).toEqual(ids);
  });

  test("it is known whether the text was cut", () => {
    expect(tokenize("a cat").cut).toBe(false);
    expect(tokenize("a cat ".repeat(20)).cut).toBe(true);
  });

  test("of a tokenizer without special tokens", () => {
    const plain = tokenizerFrom({ ...golden.tokenizer, post_processor: null }, 3);
    const whole = tokenizerFrom({ ...golden.tokenizer, post_processor: null }, 9)("a cat a red cat").ids;
    expect(whole).toHaveLength(5);
    expect(plain("a cat a red cat")).toEqual({ ids: whole.slice(0, 3), cut: true });
  });
});
