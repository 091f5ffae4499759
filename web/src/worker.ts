// Draws in the background, so that the page stays usable.

import { type Model, ModelFiles } from "./model";
import { explain } from "./problem";
import type { Answer, OpenRequest, Probe, Question } from "./protocol";
import { type Wish, sample, startOf, toPixels } from "./sampler";
import { TIMESTEP_SCALE } from "./schedule";

const scope = self as unknown as DedicatedWorkerGlobalScope;
const PROBES = 3; // velocities that are timed; the first warms up, the fastest counts
const REPORTED = 2 ** 18; // bytes between two reports of progress

let model: Model | null = null;
let stopped = false;

function answer(content: Answer, transfer: Transferable[] = []): void {
  scope.postMessage(content, transfer);
}

async function open({ base, runtime, threads }: OpenRequest): Promise<void> {
  const files = await ModelFiles.find(new URL(base), runtime);
  answer({ kind: "described", bundle: files.bundle, bytes: files.bytes, kept: await files.kept });
  let [received, reported] = [0, 0];
  model = await files.load(threads, (count) => {
    received += count;
    if (received - reported < REPORTED && received < files.bytes) return;
    reported = received;
    answer({ kind: "progress", received });
  });
  answer({ kind: "opened" });
}

async function draw(wish: Wish): Promise<void> {
  const started = performance.now();
  stopped = false;
  const picture = await sample(model!, wish, async (step, foreseen) => {
    const pixels = foreseen && toPixels(foreseen);
    answer({ kind: "step", step, pixels }, pixels ? [pixels.buffer] : []);
    await new Promise((resolve) => setTimeout(resolve)); // a message to stop may be waiting
    return !stopped;
  });
  if (!picture) return answer({ kind: "drawn", picture: null });
  const pixels = toPixels(picture);
  const seconds = (performance.now() - started) / 1000;
  const cut = model!.isCut(wish.prompt);
  answer({ kind: "drawn", picture: { pixels, cut, seconds } }, [pixels.buffer]);
}

async function probe(): Promise<Probe> {
  const { latents } = model!;
  const text = await model!.encode("");
  const size = { width: latents.width * latents.pixels, height: latents.height * latents.pixels };
  const wish = { prompt: "", seed: 0n, steps: 1, guidance: 1, ...size };
  const noise = startOf({ latents }, wish);
  let [velocity, seconds] = [new Float32Array(), Infinity];
  for (let i = 0; i < PROBES; i++) {
    const started = performance.now();
    velocity = new Float32Array(await model!.velocity(noise, TIMESTEP_SCALE, text));
    seconds = Math.min(seconds, (performance.now() - started) / 1000);
  }
  return { velocity, seconds };
}

scope.onmessage = async ({ data: question }: MessageEvent<Question>) => {
  if (question.kind === "stop") {
    stopped = true;
    return;
  }
  try {
    if (question.kind === "open") await open(question);
    if (question.kind === "draw") await draw(question.wish);
    if (question.kind === "probe") answer({ kind: "probed", probe: await probe() });
  } catch (error) {
    const doing = { open: "load the model", draw: "draw this picture", probe: "try this device" }[question.kind];
    answer({ kind: "failed", message: explain(error, doing) });
  }
};
