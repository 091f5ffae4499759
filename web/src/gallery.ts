// The pictures of this session.

import { get, make } from "./dom";
import type { Wish } from "./sampler";

export interface Picture {
  wish: Wish;
  address: string; // of the PNG file, in this tab alone
  seconds: number;
  cut: boolean; // whether the model did not read the whole prompt
}

const list = get("pictures");
const entries = new Map<Picture, HTMLLIElement>();

/** Adds a picture in front; `choose` is called when the visitor selects it. */
export function add(picture: Picture, choose: (picture: Picture) => void): void {
  const { prompt, seed } = picture.wish;
  const image = make("img", { src: picture.address, alt: `${prompt || "Without words"}, seed ${seed}` });
  const entry = make("li", {}, make("button", { type: "button", onclick: () => choose(picture) }, image));
  entries.set(picture, entry);
  list.prepend(entry);
  get("gallery").hidden = false;
}

/** Marks the one picture that the stage shows; null: none. */
export function mark(picture: Picture | null): void {
  for (const [other, entry] of entries) {
    const button = entry.firstElementChild!;
    if (other === picture) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

/** Removes a picture; the one that was drawn before or after it, null if it was the last. */
export function remove(picture: Picture): Picture | null {
  const order = [...entries.keys()];
  const place = order.indexOf(picture);
  entries.get(picture)?.remove();
  entries.delete(picture);
  URL.revokeObjectURL(picture.address);
  get("gallery").hidden = !entries.size;
  return order[place - 1] ?? order[place + 1] ?? null;
}
