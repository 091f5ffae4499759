// The page's side of a worker that draws.

import type { Bundle } from "./bundle";
import { Problem } from "./problem";
import type { Answer, Drawn, Probe, Question, Runtime } from "./protocol";
import type { Wish } from "./sampler";

export interface Loading {
  described(bundle: Bundle, bytes: number, kept: boolean): void;
  progress(received: number): void;
}

export type OnStep = (step: number, pixels: Uint8ClampedArray<ArrayBuffer> | null) => void;

/** A loaded model in a worker of its own. It does one thing at a time. */
export class Engine {
  private constructor(
    private readonly worker: Worker,
    readonly runtime: Runtime,
    readonly threads: number,
  ) {}

  /** Starts a worker and loads the model. */
  static async open(runtime: Runtime, threads: number, loading: Loading, signal?: AbortSignal): Promise<Engine> {
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    const engine = new Engine(worker, runtime, threads);
    const base = new URL("./", location.href).href;
    const listen = (answer: Answer) => {
      if (answer.kind === "described") loading.described(answer.bundle, answer.bytes, answer.kept);
      if (answer.kind === "progress") loading.progress(answer.received);
      return answer.kind === "opened" ? true : undefined;
    };
    await engine.ask({ kind: "open", base, runtime, threads }, listen, signal);
    return engine;
  }

  /** Draws; null if stopped. */
  draw(wish: Wish, onStep: OnStep): Promise<Drawn | null> {
    return this.ask({ kind: "draw", wish }, (answer) => {
      if (answer.kind === "step") onStep(answer.step, answer.pixels);
      return answer.kind === "drawn" ? answer.picture : undefined;
    });
  }

  /** One velocity of fixed noise, and how long it takes. */
  probe(signal?: AbortSignal): Promise<Probe> {
    return this.ask({ kind: "probe" }, (answer) => (answer.kind === "probed" ? answer.probe : undefined), signal);
  }

  /** Ends the drawing after the current step. */
  stop(): void {
    this.worker.postMessage({ kind: "stop" } satisfies Question);
  }

  close(): void {
    this.worker.terminate();
  }

  /**
   * Asks the worker, and listens until `read` finds the result in an answer.
   *
   * A worker that fails, or takes longer than `signal` allows, is closed.
   */
  private ask<Result>(
    question: Question,
    read: (answer: Answer) => Result | undefined,
    signal?: AbortSignal,
  ): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      const fail = (message: string) => {
        this.close();
        reject(new Problem(message));
      };
      const late = () => fail("It takes too long on this device.");
      this.worker.onmessage = ({ data: answer }: MessageEvent<Answer>) => {
        if (answer.kind === "failed") return fail(answer.message);
        const result = read(answer);
        if (result === undefined) return;
        signal?.removeEventListener("abort", late);
        resolve(result);
      };
      this.worker.onerror = (event) => {
        event.preventDefault();
        fail("The part of the app that draws could not be started. Reload the page.");
      };
      signal?.addEventListener("abort", late);
      this.worker.postMessage(question);
    });
  }
}
