import { expect, test } from "vitest";

import { editDistance, similarWords } from "../src/words";

const KNOWN = { nouns: ["cat", "apple", "house", "mouse", "ice cream"], plurals: ["apples"], colors: ["red"] };

test.each([
  ["", "", 0],
  ["apple", "apple", 0],
  ["", "cat", 3],
  ["appel", "apple", 1], // swapped
  ["aple", "apple", 1],
  ["appple", "apple", 1],
  ["epple", "apple", 1],
  ["kitten", "sitting", 3],
])("from '%s' to '%s' in %i changes", (one, other, distance) => {
  expect(editDistance(one, other)).toBe(distance);
  expect(editDistance(other, one)).toBe(distance);
});

test.each([
  ["appel", ["apple"]],
  ["appels", ["apples", "apple"]],
  ["rouse", ["house", "mouse"]],
  ["icecream", ["ice cream"]],
  ["rad", ["red"]],
  ["dog", []],
  ["at", []], // too short to guess
  ["x".repeat(1000), []],
])("known words like '%s'", (word, similar) => {
  expect(similarWords(word, KNOWN)).toEqual(similar);
});
