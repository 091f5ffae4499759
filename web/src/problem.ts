// What went wrong, in words for the person at the screen.

/** An error whose message is meant to be read by the visitor. */
export class Problem extends Error {}

const MEMORY = /out of memory|memory access out of bounds|bad_alloc|allocat|grow memory|exceeds.*memory/i;

/** The words for any error; `doing` is, for example, "draw this picture". */
export function explain(error: unknown, doing: string): string {
  if (error instanceof Problem) return error.message;
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof RangeError || MEMORY.test(message)) {
    return `There is not enough memory to ${doing}. Close other tabs, or choose a smaller size.`;
  }
  return `Could not ${doing}: ${message}`;
}
