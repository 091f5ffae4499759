// Pictures as PNG files with text in them, the same to the last bit as the pixels: a canvas may change them.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const RGB = 2; // PNG's number for pixels of red, green and blue

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The PNG file of `pixels`, RGBA of which the alpha is ignored, with `facts` as its text chunks. */
export async function encodePng(
  pixels: Uint8ClampedArray,
  width: number,
  height: number,
  facts: Record<string, string>,
): Promise<Blob> {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, RGB], 8); // bits; then compression, filter and interlacing: 0
  const texts = await Promise.all(Object.entries(facts).map(([key, value]) => textChunk(key, value)));
  const rows = await deflate(scanlines(pixels, width, height));
  const chunks = [chunk("IHDR", header), ...texts, chunk("IDAT", rows), chunk("IEND", new Uint8Array())];
  return new Blob([new Uint8Array(SIGNATURE), ...chunks], { type: "image/png" });
}

/** Rows of RGB, each behind the number of its filter: the difference from the pixel to the left. */
function scanlines(pixels: Uint8ClampedArray, width: number, height: number): Uint8Array<ArrayBuffer> {
  const lines = new Uint8Array(height * (1 + 3 * width));
  let place = 0;
  for (let y = 0; y < height; y++) {
    lines[place++] = 1;
    for (let x = 0; x < width; x++) {
      const pixel = 4 * (y * width + x);
      for (let color = 0; color < 3; color++) {
        lines[place++] = pixels[pixel + color]! - (x ? pixels[pixel + color - 4]! : 0);
      }
    }
  }
  return lines;
}

/** A text as Pillow writes it: tEXt if Latin-1 can hold it, else iTXt in UTF-8. */
function textChunk(key: string, value: string): Uint8Array<ArrayBuffer> {
  const characters = [...value].map((character) => character.codePointAt(0)!);
  if (characters.every((code) => code < 256)) {
    return chunk("tEXt", new Uint8Array([...latin1(key), 0, ...characters]));
  }
  return chunk("iTXt", new Uint8Array([...latin1(key), 0, 0, 0, 0, 0, ...new TextEncoder().encode(value)]));
}

function latin1(text: string): number[] {
  return [...text].map((character) => character.charCodeAt(0));
}

function chunk(kind: string, content: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(content.length + 12);
  const view = new DataView(whole.buffer);
  view.setUint32(0, content.length);
  whole.set(latin1(kind), 4);
  whole.set(content, 8);
  view.setUint32(content.length + 8, crc32(whole.subarray(4, content.length + 8)));
  return whole;
}

function crc32(content: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of content) crc = CRC_TABLE[(crc ^ byte) & 255]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

async function deflate(content: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([content]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
