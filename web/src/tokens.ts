// A prompt as token ids, truncated as the library `tokenizers` does it in Python; its port for browsers does not.

import { Tokenizer } from "@huggingface/tokenizers";

export interface Tokens {
  ids: number[];
  cut: boolean; // whether the prompt is longer than what is read
}

/** Makes prompts token ids, at most `longest`, from the content of a tokenizer.json. */
export function tokenizerFrom(content: object, longest: number): (text: string) => Tokens {
  const tokenizer = new Tokenizer(content, {});
  return (text) => {
    const whole = tokenizer.encode(text).ids;
    if (whole.length <= longest) return { ids: whole, cut: false };
    // The special tokens around the text stay: those before it are as many as it is shifted by.
    const plain = tokenizer.encode(text, { add_special_tokens: false }).ids;
    const special = whole.length - plain.length;
    let before = 0;
    while (before < special && !plain.every((id, index) => whole[index + before] === id)) before++;
    const after = whole.slice(before + plain.length);
    return { ids: [...whole.slice(0, Math.max(0, longest - after.length)), ...after].slice(0, longest), cut: true };
  };
}
