// The noise levels that sampling visits: the numbers of src/snapgen/flow/schedule.py, bit for bit.

export const TIMESTEP_SCALE = 1000; // the network is given 1000 * sigma

/** The levels that `steps` Euler steps visit, `steps + 1` fp32 numbers: from 1, evenly spaced before the shift, to 0. */
export function samplingLevels(steps: number, shift: number): number[] {
  if (!(steps >= 1)) throw new RangeError(`number of steps is ${steps}, expected at least 1`);
  const levels = Array.from({ length: steps }, (_, index) => {
    const sigma = (steps - index) / steps;
    return Math.fround((shift * sigma) / (1 + (shift - 1) * sigma));
  });
  return [...levels, 0];
}
