import { inflateSync } from "node:zlib";

import { expect, test } from "vitest";

import { factsOf, fileName } from "../src/facts";
import { encodePng } from "../src/png";

const SIZE = { width: 3, height: 2 };

async function chunksOf(pixels: Uint8ClampedArray, facts: Record<string, string>): Promise<[string, Buffer][]> {
  const file = Buffer.from(await (await encodePng(pixels, SIZE.width, SIZE.height, facts)).arrayBuffer());
  expect([...file.subarray(0, 8)]).toEqual([137, 80, 78, 71, 13, 10, 26, 10]);
  const chunks: [string, Buffer][] = [];
  for (let place = 8; place < file.length; ) {
    const length = file.readUInt32BE(place);
    chunks.push([file.toString("latin1", place + 4, place + 8), file.subarray(place + 8, place + 8 + length)]);
    place += length + 12;
  }
  return chunks;
}

test("pixels and facts come back", async () => {
  const pixels = Uint8ClampedArray.from({ length: 24 }, (_, index) => (index * 37) % 256);
  const chunks = await chunksOf(pixels, { prompt: "a café", other: "猫 ☺" });
  expect(chunks.map(([kind]) => kind)).toEqual(["IHDR", "tEXt", "iTXt", "IDAT", "IEND"]);
  expect(chunks[0]![1].toString("hex")).toBe("00000003000000020802000000");
  expect(chunks[1]![1].toString("latin1")).toBe("prompt\0a café");
  expect(chunks[2]![1].toString("utf8")).toBe("other\0\0\0\0\0猫 ☺");
  const rows = inflateSync(chunks[3]![1]);
  const found: number[] = [];
  for (let y = 0; y < 2; y++) {
    expect(rows[10 * y]).toBe(1); // the filter: differences to the left
    for (let x = 0; x < 9; x++) found.push(((x < 3 ? 0 : found.at(-3)!) + rows[10 * y + 1 + x]!) % 256);
  }
  expect(found).toEqual([...pixels].filter((_, index) => index % 4 < 3));
});

test("facts have the names that Python gives them", () => {
  const wish = { prompt: "Two red apples, please!", seed: 2n ** 60n, steps: 4, guidance: 1, width: 128, height: 64 };
  expect(factsOf(wish, { model: "mini", snapgen: "0.1.0" })).toEqual({
    prompt: "Two red apples, please!",
    seed: "1152921504606846976",
    size: "128x64",
    steps: "4",
    guidance: "1.0",
    model: "mini",
    snapgen: "0.1.0",
  });
  expect(factsOf({ ...wish, guidance: 2.5 }, { model: "", snapgen: "" }).guidance).toBe("2.5");
  expect(fileName(wish)).toBe("two-red-apples-please-1152921504606846976.png");
  expect(fileName({ ...wish, prompt: "猫", seed: 1n })).toBe("picture-1.png");
});
