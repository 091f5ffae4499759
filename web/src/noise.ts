// The noise of a seed: the numbers of src/snapgen/flow/noise.py, bit for bit, which are torch's on a CPU up to rounding.

const BLOCK = 16; // numbers that are transformed together, and the fewest that can be sampled
const TWO_PI = Math.fround(2 * Math.PI);
const STATE = 624; // words of the Mersenne Twister MT19937
const SHIFT = 397;

/** The numbers of the seed (any integer; it counts modulo 2^32): standard normal, fp32. */
export function seededNoise(seed: bigint, count: number): Float32Array {
  if (count < BLOCK) throw new RangeError(`noise of ${count} numbers, expected at least ${BLOCK}`);
  const next = mersenneTwister(Number(BigInt.asUintN(32, seed)));
  const uniform = () => (next() & 0xffffff) / 2 ** 24;
  const noise = new Float32Array(count);
  const numbers = new Float64Array(BLOCK);
  const fill = (start: number) => {
    for (let i = 0; i < BLOCK; i++) numbers[i] = uniform();
    noise.set(boxMuller(numbers), start);
  };
  const whole = count - (count % BLOCK);
  for (let start = 0; start < whole; start += BLOCK) fill(start);
  if (whole < count) {
    for (let i = whole; i < count; i++) next(); // sampled, then replaced: the last block overlaps the one before
    fill(count - BLOCK);
  }
  return noise;
}

/** A block of normal numbers from uniform ones in [0, 1): the first eight give radii, the others angles. */
function boxMuller(uniform: Float64Array): Float32Array {
  const block = new Float32Array(BLOCK);
  const half = BLOCK / 2;
  for (let i = 0; i < half; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform[i]!));
    const angle = Math.fround(TWO_PI * uniform[i + half]!); // rounded as in torch
    block[i] = radius * Math.cos(angle);
    block[i + half] = radius * Math.sin(angle);
  }
  return block;
}

/** The 32-bit words of MT19937 (Matsumoto and Nishimura 1998) from a seed below 2^32. */
function mersenneTwister(seed: number): () => number {
  const state = new Uint32Array(STATE);
  state[0] = seed;
  for (let i = 1; i < STATE; i++) {
    const before = state[i - 1]! ^ (state[i - 1]! >>> 30);
    state[i] = Math.imul(1812433253, before) + i;
  }
  let index = STATE;
  const twist = () => {
    for (let i = 0; i < STATE; i++) {
      const bits = (state[i]! & 0x80000000) | (state[(i + 1) % STATE]! & 0x7fffffff);
      state[i] = state[(i + SHIFT) % STATE]! ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    index = 0;
  };
  return () => {
    if (index === STATE) twist();
    let word = state[index++]!;
    word ^= word >>> 11;
    word ^= (word << 7) & 0x9d2c5680;
    word ^= (word << 15) & 0xefc60000;
    return (word ^ (word >>> 18)) >>> 0;
  };
}
