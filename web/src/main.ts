// The page: loads the model, draws what is wished for, and keeps the pictures of the session.

import type { Bundle } from "./bundle";
import { checkBrowser, openEngine, openGraphics } from "./choice";
import { announce, get } from "./dom";
import type { Engine, Loading } from "./engine";
import { factsOf } from "./facts";
import { type Picture, add, mark, remove } from "./gallery";
import { encodePng } from "./png";
import { Problem, explain } from "./problem";
import { prompt, setKnownWords, setPrompt } from "./prompt";
import type { Wish } from "./sampler";
import { offer, restore, wishes } from "./settings";
import { clear, hideProblem, showLoading, showPicture, showProblem, showProgress, showWork } from "./stage";

const drawButton = get<HTMLButtonElement>("draw");
const stopButton = get<HTMLButtonElement>("stop");
const graphics = get<HTMLInputElement>("graphics");

let bundle: Bundle | null = null;
let opening: Promise<Engine> | null = null; // the engine that draws, once it is loaded
let shown: Picture | null = null;
let turn = 0; // rises when other pictures are wished for, or none
let drawing: Promise<void> = Promise.resolve();

/** The engine that draws; the model is loaded first, if it is not yet. */
function engine(): Promise<Engine> {
  opening ??= load().catch((error: unknown) => {
    opening = null;
    throw error;
  });
  return opening;
}

async function load(): Promise<Engine> {
  const state = { received: 0, bytes: 0, kept: false };
  const loading: Loading = {
    described(found, bytes, kept) {
      if (!bundle) {
        offer(found);
        setKnownWords(found.knownWords);
        get("model").textContent = `Model: ${found.model}${found.license ? `, ${found.license}` : ""}.`;
      }
      bundle = found;
      Object.assign(state, { bytes, kept });
      showLoading(state);
      announce(kept ? "The model is starting." : `Fetching the model, ${(bytes / 1e6).toFixed(0)} megabytes.`);
    },
    progress(received) {
      state.received = received;
      showLoading(state);
    },
  };
  showLoading(state);
  try {
    const opened = await openEngine(loading);
    announce("The model is ready.");
    void keepApp();
    return opened;
  } finally {
    showLoading(null);
  }
}

/** Keeps the app itself for offline use, now that the model is loaded; pages without HTTPS cannot. */
async function keepApp(): Promise<void> {
  if (!("serviceWorker" in navigator) || !globalThis.caches) return;
  try {
    await navigator.serviceWorker.register("./sw.js");
    await navigator.serviceWorker.ready;
    get("offline").textContent = "It works offline from now on.";
  } catch {
    // It works, but only online.
  }
}

/** Draws all that `wished` gives once the model is loaded, unless something else is wished for meanwhile. */
async function drawAll(wished: () => Wish[] | null, mine: number): Promise<void> {
  if (mine !== turn) return;
  hideProblem();
  stopButton.hidden = false;
  try {
    showWork("Waiting for the model");
    await engine();
    const all = wished() ?? [];
    for (const [index, wish] of all.entries()) {
      const which = all.length > 1 ? ` picture ${index + 1} of ${all.length}` : "";
      const drawer = await engine();
      if (mine !== turn) return;
      showWork(`Drawing${which}`);
      announce(`Drawing${which}.`);
      const drawn = await drawer.draw(wish, (step, pixels) => {
        if (pixels && mine === turn) showProgress(pixels, wish);
        showWork(`Drawing${which}, step ${step} of ${wish.steps}`);
      });
      if (!drawn) return;
      const file = await encodePng(drawn.pixels, wish.width, wish.height, factsOf(wish, bundle!));
      const { seconds, cut } = drawn;
      const picture = { wish, address: URL.createObjectURL(file), seconds, cut };
      add(picture, show);
      show(picture);
      announce(`Done: ${wish.prompt || "a picture without words"}, seed ${wish.seed}.`);
    }
  } catch (error) {
    fail(error);
  } finally {
    showWork("");
    if (document.activeElement === stopButton) drawButton.focus();
    stopButton.hidden = true;
    if (shown) show(shown);
    else clear();
  }
}

function show(picture: Picture): void {
  shown = picture;
  showPicture(picture);
  mark(picture);
}

/** The next drawing starts with another worker: this one may be out of memory. */
function fail(error: unknown): void {
  opening?.then((failed) => failed.close()).catch(() => undefined);
  opening = null;
  graphics.checked = false;
  showProblem(explain(error, "draw"), true);
}

async function stop(): Promise<void> {
  turn++;
  const drawer = await opening?.catch(() => null);
  drawer?.stop();
}

/** Draws what the form says, instead of what is being drawn. */
function start(): void {
  const text = prompt();
  const ready = bundle && wishes(text);
  if (bundle && !ready) return;
  void stop();
  const mine = turn;
  // Before the model is described, its settings are not known.
  drawing = drawing.then(() => drawAll(() => ready ?? wishes(text), mine));
}

/** Changes between the graphics processor and WebAssembly. */
async function changeRuntime(): Promise<void> {
  const note = get("graphics-note");
  note.textContent = "";
  try {
    const before = await engine();
    if (!graphics.checked) {
      before.close();
      opening = null;
      await engine();
      return;
    }
    note.textContent = "Loading it, and comparing a step.";
    const after = await openGraphics(before);
    before.close();
    opening = Promise.resolve(after);
    note.textContent = "The graphics processor draws now.";
  } catch (error) {
    graphics.checked = false;
    note.textContent = `${explain(error, "use the graphics processor")} Pictures are drawn without it.`;
  }
}

get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
stopButton.addEventListener("click", () => void stop());
get("retry").addEventListener("click", () => {
  hideProblem();
  engine().catch(fail);
  get("prompt").focus();
});
get("reuse").addEventListener("click", () => {
  restore(shown!.wish);
  setPrompt(shown!.wish.prompt);
  get("prompt").focus();
});
get("remove").addEventListener("click", () => {
  const next = remove(shown!);
  shown = null;
  clear();
  if (next) show(next);
  announce("Removed.");
  get(next ? "remove" : "prompt").focus();
});
graphics.addEventListener("change", () => {
  graphics.disabled = true;
  void stop();
  drawing = drawing.then(changeRuntime).finally(() => (graphics.disabled = false));
});

clear();
try {
  checkBrowser();
  const { connection } = navigator as { connection?: { saveData?: boolean } };
  if (!connection?.saveData) engine().catch(fail); // else with the first drawing
} catch (error) {
  drawButton.disabled = true;
  showProblem((error as Problem).message, false);
}
