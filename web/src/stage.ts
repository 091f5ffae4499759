// Shows the picture in progress, a finished one with what can be done with it, and what went wrong.

import { get } from "./dom";
import { fileName } from "./facts";
import type { Picture } from "./gallery";
import type { Wish } from "./sampler";

const canvas = get<HTMLCanvasElement>("canvas");
const image = get<HTMLImageElement>("picture");
const working = get("working");

/** An empty stage. */
export function clear(): void {
  canvas.hidden = image.hidden = get("caption").hidden = true;
  get("empty").hidden = false;
}

/** Shows the picture as it is after a step. */
export function showProgress(pixels: Uint8ClampedArray<ArrayBuffer>, { width, height }: Wish): void {
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")!.putImageData(new ImageData(pixels, width, height), 0, 0);
  canvas.hidden = false;
  image.hidden = get("empty").hidden = get("caption").hidden = true;
}

/** Says what is being done; "" when nothing is. */
export function showWork(text: string): void {
  working.textContent = text;
  working.hidden = !text;
}

/** Shows a finished picture. */
export function showPicture(picture: Picture): void {
  const { wish, address, seconds } = picture;
  image.src = address;
  image.alt = wish.prompt || "A picture without words";
  image.hidden = get("caption").hidden = false;
  canvas.hidden = get("empty").hidden = true;
  get("said").textContent = wish.prompt ? `“${wish.prompt}”` : "Without words";
  const steps = wish.steps === 1 ? "1 step" : `${wish.steps} steps`;
  const guidance = wish.guidance > 1 ? `, guidance ${wish.guidance}` : "";
  get("facts").textContent = `Seed ${wish.seed} · ${wish.width} × ${wish.height} px · ${steps}${guidance} · ${seconds.toFixed(1)} s`;
  get("cut").hidden = !picture.cut;
  const link = get<HTMLAnchorElement>("download");
  link.href = address;
  link.download = fileName(wish);
}

/** Says what went wrong; with `again` the visitor can try again. */
export function showProblem(text: string, again: boolean): void {
  get("problem-text").textContent = text;
  get("problem").hidden = false;
  get("retry").hidden = !again;
}

export function hideProblem(): void {
  get("problem").hidden = true;
}

/** Shows how much of the model is loaded; null: all of it. */
export function showLoading(state: { received: number; bytes: number; kept: boolean } | null): void {
  get("loading").hidden = !state;
  if (!state) return;
  const { received, bytes, kept } = state;
  const bar = get<HTMLProgressElement>("load");
  if (bytes && received < bytes) {
    bar.max = bytes;
    bar.value = received;
  } else {
    bar.removeAttribute("value");
  }
  const megabytes = (count: number) => (count / 1e6).toFixed(0);
  get("load-text").textContent = !bytes
    ? "Looking for the model"
    : received >= bytes
      ? "Starting the model"
      : kept
        ? "Opening the model that this browser keeps"
        : `Fetching the model, once: ${megabytes(received)} of ${megabytes(bytes)} MB`;
}
