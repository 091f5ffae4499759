// The words of a prompt that a model has not learned (src/snapgen/pipeline/words.py), and known words that are like them.

export type KnownWords = Record<string, string[]>;

export interface Word {
  text: string; // lower-case
  start: number; // in the prompt
  end: number;
}

const LETTER = "\\p{L}\\p{Nl}\\p{No}";
const WORD = new RegExp(`[${LETTER}]+|\\p{Nd}+`, "gu"); // letters of any script, or a number
const POSSESSIVE = new RegExp(`(?<=[${LETTER}\\p{Nd}_])['\u2019]s(?![${LETTER}\\p{Nd}_])`, "giu");
const CLOSE = 2; // letters that may be wrong, and no more than a third of the word
const SUGGESTIONS = 3;
const LONGEST = 30; // letters of a word that is looked up

/** The words and numbers of `text`, without punctuation and the possessive's s. */
function split(text: string): Word[] {
  const plain = text.replace(POSSESSIVE, "  "); // of the same length
  return [...plain.matchAll(WORD)].map(({ 0: word, index }) => ({
    text: word.toLowerCase(),
    start: index,
    end: index + word.length,
  }));
}

/**
 * The words of `prompt` that are not among `known`, in order, as often as they occur.
 *
 * Names of several words count as a whole: "ice cream" is known and "ice" is not.
 */
export function unknownWords(prompt: string, known: KnownWords): Word[] {
  const names = new Set<string>();
  let longest = 1;
  for (const name of Object.values(known).flat()) {
    const parts = split(name).map((word) => word.text);
    names.add(parts.join(" "));
    longest = Math.max(longest, parts.length);
  }
  const words = split(prompt);
  const unknown: Word[] = [];
  let start = 0;
  while (start < words.length) {
    let length = Math.min(longest, words.length - start);
    const isKnown = () => names.has(words.slice(start, start + length).map((word) => word.text).join(" "));
    while (length && !isKnown()) length--;
    if (!length) unknown.push(words[start]!);
    start += Math.max(1, length);
  }
  return unknown;
}

/** Known words that differ from `word` by a slip or two, the most similar first. */
export function similarWords(word: string, known: KnownWords): string[] {
  const allowed = word.length > LONGEST ? 0 : Math.min(CLOSE, Math.floor(word.length / 3));
  return [...new Set(Object.values(known).flat())]
    .map((name) => ({ name, distance: editDistance(word, name.toLowerCase()) }))
    .filter(({ distance }) => distance <= allowed)
    .sort((one, other) => one.distance - other.distance || one.name.localeCompare(other.name))
    .slice(0, SUGGESTIONS)
    .map(({ name }) => name);
}

/** How many letters must be added, removed, replaced or swapped with their neighbour to turn one text into the other. */
export function editDistance(one: string, other: string): number {
  let before: number[] = [];
  let row = Array.from({ length: other.length + 1 }, (_, column) => column);
  for (let i = 1; i <= one.length; i++) {
    const next = [i];
    for (let j = 1; j <= other.length; j++) {
      const same = one[i - 1] === other[j - 1];
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (same ? 0 : 1));
      const swapped = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1];
      if (swapped) next[j] = Math.min(next[j]!, before[j - 2]! + 1);
    }
    [before, row] = [row, next];
  }
  return row[other.length]!;
}
