// The field for the prompt: underlines the words that the model does not know, and offers others.

import { get, make } from "./dom";
import { type KnownWords, similarWords, unknownWords } from "./words";

const PAUSE = 400; // ms without a key until unknown words are listed
const LISTED = 5; // unknown words

const field = get<HTMLTextAreaElement>("prompt");
const mirror = get("mirror");
const list = get("unknown");

let known: KnownWords | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;

/** What the visitor wrote, on one line. */
export function prompt(): string {
  return field.value.replace(/\s+/g, " ").trim();
}

export function setPrompt(text: string): void {
  field.value = text;
  underline();
  listUnknown();
}

/** Lets the field know the words that the model has learned; null: there is no list. */
export function setKnownWords(words: KnownWords | null): void {
  known = words;
  get("vocabulary").hidden = !words;
  const rows = Object.entries(words ?? {}).flatMap(([kind, names]) => [
    make("dt", { textContent: kind }),
    make("dd", {}, ...names.map((name) => wordButton(name, () => addWord(name)))),
  ]);
  get("words").replaceChildren(...rows);
  underline();
  listUnknown();
}

field.addEventListener("input", () => {
  underline();
  clearTimeout(timer);
  timer = setTimeout(listUnknown, PAUSE);
});
field.addEventListener("scroll", () => (mirror.scrollTop = field.scrollTop));
field.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  get<HTMLFormElement>("form").requestSubmit();
});

function underline(): void {
  const text = field.value;
  const parts: (Node | string)[] = [];
  let place = 0;
  for (const { start, end } of known ? unknownWords(text, known) : []) {
    parts.push(text.slice(place, start), make("mark", { textContent: text.slice(start, end) }));
    place = end;
  }
  mirror.replaceChildren(...parts, `${text.slice(place)}\n`);
  mirror.scrollTop = field.scrollTop;
}

function listUnknown(): void {
  const words = known ? [...new Set(unknownWords(field.value, known).map(({ text }) => text))] : [];
  const lines = words.slice(0, LISTED).map((word) => {
    const similar = similarWords(word, known!);
    const buttons = similar.map((name) => wordButton(name, () => replaceWord(word, name)));
    const rest = similar.length ? " is not a word it knows. Did you mean" : " is not a word it knows.";
    return make("p", { className: "small" }, make("span", {}, make("b", { textContent: word }), rest), ...buttons);
  });
  if (words.length > LISTED) lines.push(make("p", { className: "small", textContent: `And ${words.length - LISTED} more.` }));
  // What has not changed is not read out again.
  if (list.textContent !== lines.map((line) => line.textContent).join("")) list.replaceChildren(...lines);
}

function replaceWord(word: string, name: string): void {
  const text = field.value;
  let changed = "";
  let place = 0;
  for (const found of unknownWords(text, known!).filter((other) => other.text === word)) {
    changed += text.slice(place, found.start) + name;
    place = found.end;
  }
  setPrompt(changed + text.slice(place));
  field.focus();
}

function addWord(name: string): void {
  setPrompt(`${field.value.trimEnd()} ${name}`.trimStart());
}

function wordButton(name: string, act: () => void): HTMLButtonElement {
  return make("button", { type: "button", className: "word", textContent: name, onclick: act });
}
