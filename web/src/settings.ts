// The settings of a picture: what the visitor chose, and the model's own values.

import type { Bundle } from "./bundle";
import { get, make } from "./dom";
import { readSeed, sides } from "./limits";
import type { Wish } from "./sampler";

const seed = get<HTMLInputElement>("seed");
const count = get<HTMLInputElement>("count");
const width = get<HTMLSelectElement>("width");
const height = get<HTMLSelectElement>("height");
const steps = get<HTMLInputElement>("steps");
const guidance = get<HTMLInputElement>("guidance");

/** Fills the form with what the model allows, and its own values. */
export function offer({ latents, sampling }: Bundle): void {
  for (const [select, side] of [[width, latents.width], [height, latents.height]] as const) {
    const options = sides(side, latents).map((value) => make("option", { value: String(value), textContent: `${value} px` }));
    select.replaceChildren(...options);
    select.value = String(side * latents.pixels);
  }
  steps.value = String(sampling.steps);
  guidance.value = String(sampling.guidance);
  get("guidance-field").hidden = sampling.guidance <= 1;
}

/** The wishes for `prompt`, one for each picture; null if a field is filled in wrongly, which then has the focus. */
export function wishes(prompt: string): Wish[] | null {
  const first = readSeed(seed.value, Number(count.value) - 1);
  seed.setCustomValidity(first === null ? "A whole number is expected." : "");
  const wrong = [seed, count, steps, guidance].find((field) => !field.checkValidity());
  if (first === null || wrong) {
    wrong?.closest("details")?.setAttribute("open", "");
    wrong?.reportValidity();
    return null;
  }
  return Array.from({ length: Number(count.value) }, (_, index) => ({
    prompt,
    seed: first + BigInt(index),
    steps: Number(steps.value),
    guidance: Number(guidance.value),
    width: Number(width.value),
    height: Number(height.value),
  }));
}

/** Fills the form with the settings of a picture. */
export function restore(wish: Wish): void {
  seed.value = String(wish.seed);
  count.value = "1";
  steps.value = String(wish.steps);
  guidance.value = String(wish.guidance);
  width.value = String(wish.width);
  height.value = String(wish.height);
}
