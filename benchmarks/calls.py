"""One network called in one runtime: what `runtimes.py` runs in a process of its own.

Only what the runtime itself needs is imported, so that the peak of the process's memory is what a user of it sees.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snapgen.runtime.bundle import DECODER, UNET, Bundle, Network, Port, read_bundle

if TYPE_CHECKING:
    import torch
    from torch import nn

    from snapgen.export.parts import Part
    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.runtime.pipeline import BundlePipeline, Runner

TEXT, PICTURE = "text_encoder", "picture"  # beside the UNet and the decoder
BARE = "networks.json"  # in a folder of networks with random weights, which is no bundle
PROMPT = "two red apples on a green background"
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
RUNTIME, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # of onnxruntime-web
BROWSER_WARMUP = 3  # calls; WebAssembly is compiled again, better, while it runs
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import * as ort from "/runtime/RUNTIME";
window.measure = async ({ networks, plan, repeats, warmup, threads }) => {
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { wasm: new URL("/runtime/BINARY", location.href).href };
  const sessions = {};
  for (const { name, file, inputs } of networks) {
    const feeds = {};
    for (const { name, dtype, shape } of inputs) {
      const size = shape.reduce((all, side) => all * side, 1);
      const data = dtype === "int64" ? new BigInt64Array(size).fill(1n) : new Float32Array(size).map(Math.random);
      feeds[name] = new ort.Tensor(dtype, data, shape);
    }
    sessions[name] = { session: await ort.InferenceSession.create("/bundle/" + file), feeds };
  }
  const seconds = [];
  for (let repeat = 0; repeat < warmup + repeats; repeat++) {
    const started = performance.now();
    for (const name of plan) await sessions[name].session.run(sessions[name].feeds);
    seconds.push((performance.now() - started) / 1000);
  }
  return seconds.slice(warmup);
};
</script>""".replace("RUNTIME", RUNTIME).replace("BINARY", BINARY)


@dataclass(frozen=True)
class Call:
    """What to call, and where."""

    runtime: str  # "eager", "optimize", "onnx", "executorch" or "wasm"
    model: str  # a model, a preset, or one of `peers.PEERS`
    network: str  # "text_encoder", "unet", "decoder", or "picture": all of them, as often as a picture needs
    size: int  # pixels
    tokens: int | None = None  # of text; None: as many as the model reads
    bundle: str | None = None  # its folder, for all runtimes but torch
    files: str | None = None  # the folder of onnxruntime-web, for the browser
    threads: int = 1
    repeats: int = 1


def measure(call: Call) -> dict[str, Any]:
    """Seconds of each repetition after a first one, peak memory of the process, and bytes of the weights."""
    if call.runtime == "wasm":
        return measure_browser(call)
    run, weights = PREPARE[call.runtime](call)
    run()
    seconds = []
    for _ in range(call.repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "peak_bytes": peak_memory("self"), "weight_bytes": weights}


def peak_memory(process: str | int) -> int | None:
    """The most memory that a process has had resident, in bytes; None where the system does not say."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)


# torch


def prepare_torch(call: Call, optimized: bool) -> tuple[Callable[[], object], int]:
    """A call of the network in torch, by the pipeline's parts or as a picture; the bytes of its weights."""
    import torch

    torch.set_num_threads(call.threads)
    if is_peer(call.model):
        part = peer_part(call.model, call.size)
        if optimized:
            optimize_alone(part.module)
        return part_call(part), weight_bytes(part.module)
    pipeline = open_pipeline(call.model)
    if optimized:
        pipeline.optimize()
    if call.network == PICTURE:
        generator = torch.Generator()

        def draw() -> object:
            return pipeline([PROMPT], height=call.size, width=call.size, generator=[generator.manual_seed(0)])

        networks = (pipeline.text_encoder, pipeline.unet, pipeline.vae.decoder)
        return draw, sum(weight_bytes(network) for network in networks if network is not None)
    module = pipeline.vae.decoder if call.network == DECODER else None  # without the encoder beside it
    part = pipeline_part(pipeline, call)
    return part_call(part), weight_bytes(module or part.module)


def open_pipeline(model: str) -> SnapGenPipeline:
    """The pipeline of a model, or of a preset with random weights."""
    import torch

    from snapgen.models.presets import AUTOENCODER_OF, UNETS, create_autoencoder, create_unet
    from snapgen.pipeline.bundled import BUNDLED
    from snapgen.pipeline.load import load_pipeline
    from snapgen.pipeline.text_to_image import SnapGenPipeline
    from snapgen.profiling.measure import Conditions, random_network

    if model not in UNETS or model in BUNDLED:
        return load_pipeline(model)
    unet = random_network(lambda: create_unet(model), Conditions())
    vae = random_network(lambda: create_autoencoder(AUTOENCODER_OF.get(model, "decoder")), Conditions())
    for network in (unet, vae):
        lay_out(network, torch.contiguous_format)
    return SnapGenPipeline(unet=unet, vae=vae)


def lay_out(network: nn.Module, form: torch.memory_format) -> None:
    """Gives the weights of convolutions the memory format `form`."""
    network.to(memory_format=form)  # type: ignore[call-overload]


def pipeline_part(pipeline: SnapGenPipeline, call: Call) -> Part:
    """The network of `pipeline` that `call` names, with inputs of its size."""
    from snapgen.export.parts import decoder_part, text_part, unet_part
    from snapgen.pipeline.vae import scale_factor

    side = call.size // scale_factor(pipeline.vae)
    if call.network == DECODER:
        return decoder_part(pipeline.vae, side, side)
    if call.network == UNET:
        return unet_part(pipeline.unet, side, side, call.tokens or pipeline.joint_text_encoder().max_length)
    return text_part(TEXT, pipeline.joint_text_encoder().encoders[TEXT], pooled=False)  # type: ignore[arg-type]


def part_call(part: Part) -> Callable[[], object]:
    """A call of `part` with its example, in the precision of its weights."""
    import torch

    dtype = next(part.module.parameters()).dtype
    inputs = {
        name: tensor.to(dtype) if tensor.is_floating_point() and name != "timestep" else tensor
        for name, tensor in part.inputs.items()
    }

    def run() -> object:
        with torch.inference_mode():
            return part(inputs)

    return run


def weight_bytes(network: nn.Module) -> int:
    """Bytes of the parameters of `network`, as they are in memory."""
    return sum(parameter.nbytes for parameter in network.parameters())


def optimize_alone(network: nn.Module) -> None:
    """What `SnapGenPipeline.optimize` does on a CPU, for a network that has no such pipeline."""
    import torch

    from snapgen.machine.memory import keep_freed_memory
    from snapgen.machine.precision import gains_by_bfloat16

    keep_freed_memory()
    lay_out(network, torch.channels_last)
    if gains_by_bfloat16(torch.device("cpu")):
        network.bfloat16()


def is_peer(model: str) -> bool:
    """Whether `model` is one of `peers.PEERS`; these have capitals, which presets and bundled models have not."""
    return model != model.lower() and not Path(model).is_dir()


def peer_part(name: str, size: int) -> Part:
    """A peer's network with random weights and inputs as `peers.text_input` makes them, to convert and to call."""
    import torch
    from peers import PEERS

    from snapgen.export.parts import Part
    from snapgen.profiling.measure import Conditions, random_network

    inputs: dict[str, torch.Tensor] = PEERS[name].inputs(1, size)
    names = list(inputs)

    class PeerPart(torch.nn.Module):
        """The peer's network, called with latents, timestep and text states."""

        def __init__(self) -> None:
            super().__init__()
            self.network = random_network(PEERS[name].build, Conditions())
            lay_out(self.network, torch.contiguous_format)

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> tuple[torch.Tensor]:
            given = dict(zip(names, (sample, timestep, states), strict=True))
            return (self.network(**given, return_dict=False)[0],)

    sizes: dict[int, dict[int, str]] = {1: {}, 3: {1: "tokens"}, 4: {2: "height", 3: "width"}}  # by number of axes
    axes = {key: {0: "batch"} | sizes[tensor.dim()] for key, tensor in inputs.items()}
    return Part(UNET, PeerPart(), inputs, ("sample",), axes | {"sample": {0: "batch"} | sizes[4]})


# Bundles


def prepare_onnx(call: Call) -> tuple[Callable[[], object], int]:
    """A call of the network in ONNX Runtime; the bytes of its file."""
    from snapgen.runtime.onnx import open_bundle, open_network

    folder = Path(call.bundle or "")
    if call.network == PICTURE:
        return picture_call(open_bundle(folder, call.threads), call), network_bytes(folder)
    network = described(folder, "onnx", call.network)
    inputs = example_inputs(network, sizes_of(folder, call))
    runner = open_network(network, folder, call.threads)
    return lambda: runner(inputs), network_bytes(folder, network)


def prepare_executorch(call: Call) -> tuple[Callable[[], object], int]:
    """A call of the network in ExecuTorch; the bytes of its file."""
    import torch

    from snapgen.export.targets import TARGETS
    from snapgen.runtime.pipeline import BundlePipeline, read_tokenizers

    torch.set_num_threads(call.threads)
    folder, converter = Path(call.bundle or ""), TARGETS["executorch"].open()
    if call.network == PICTURE:
        bundle = read_bundle(folder, "executorch")
        networks = {name: converter.load(network, folder) for name, network in bundle.networks.items()}
        files = [text.tokenizer for text in bundle.texts if text.tokenizer is not None]
        pipeline = BundlePipeline(bundle, networks, read_tokenizers(folder, files))
        return picture_call(pipeline, call), network_bytes(folder)
    network = described(folder, "executorch", call.network)
    runner: Runner = converter.load(network, folder)
    inputs = example_inputs(network, {})
    return lambda: runner(inputs), network_bytes(folder, network)


def picture_call(pipeline: BundlePipeline, call: Call) -> Callable[[], object]:
    """A whole picture."""
    return lambda: pipeline(PROMPT, seed=0, height=call.size, width=call.size)


def described(folder: Path, target: str, name: str) -> Network:
    """The description of the network called `name` in a bundle, or among bare networks."""
    if (folder / BARE).is_file():
        return Network.model_validate(json.loads((folder / BARE).read_text())["networks"][name])
    return read_bundle(folder, target).networks[name]


def network_bytes(folder: Path, network: Network | None = None) -> int:
    """The bytes of a network's files in `folder`, or of all networks'."""
    names = [network.file] if network else [found.file for found in bundle_of(folder).networks.values()]
    stems = tuple(name.rpartition(".")[0] + "." for name in names)  # weights may lie beside the graph
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.startswith(stems))


def bundle_of(folder: Path) -> Bundle:
    """The description of the bundle in `folder`, whatever its target."""
    return Bundle.model_validate_json((folder / "bundle.json").read_text())


def sizes_of(folder: Path, call: Call) -> dict[str, int]:
    """The sizes that the names in the shapes of a bundle's inputs stand for in `call`."""
    if (folder / BARE).is_file():
        facts = json.loads((folder / BARE).read_text())
        tokens, pixels = call.tokens or facts["tokens"], facts["pixels"]
    else:
        bundle = bundle_of(folder)
        tokens, pixels = call.tokens or max(text.tokens[1] for text in bundle.texts), bundle.latents.pixels
    side = call.size // pixels
    return {"batch": 1, "tokens": tokens, "height": side, "width": side}


def example_inputs(network: Network, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Noise for the inputs of `network`, ones for its integers; `sizes` by the names that stand in its shapes."""
    rng = np.random.default_rng(0)

    def example(port: Port) -> np.ndarray:
        shape = shape_of(port, sizes)
        if port.dtype.startswith("int") or "mask" in port.name:
            return np.ones(shape, "int64")  # runners take a part's own types
        return rng.standard_normal(shape, np.float32)

    return {port.name: example(port) for port in network.inputs}


def shape_of(port: Port, sizes: Mapping[str, int]) -> list[int]:
    """The shape of `port` with numbers alone."""
    return [sizes[side] if isinstance(side, str) else side for side in port.shape]


# The browser


def measure_browser(call: Call) -> dict[str, Any]:
    """`measure` in a tab of Chromium; the memory is the tab's."""
    import shutil

    from playwright.sync_api import sync_playwright

    folder, files = Path(call.bundle or ""), Path(call.files or "")
    bundle = read_bundle(folder, "onnx")
    names = list(bundle.networks) if call.network == PICTURE else [call.network]
    plan = [TEXT, *[UNET] * bundle.sampling.steps, DECODER] if call.network == PICTURE else names
    sizes = sizes_of(folder, call)
    networks = [
        {
            "name": name,
            "file": bundle.networks[name].file,
            "inputs": [port.model_dump() | {"shape": shape_of(port, sizes)} for port in bundle.networks[name].inputs],
        }
        for name in names
    ]
    job = {
        "networks": networks,
        "plan": plan,
        "repeats": call.repeats,
        "warmup": BROWSER_WARMUP,
        "threads": call.threads,
    }
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with served({"bundle": folder, "runtime": files}) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("!!window.measure")
        page.set_default_timeout(0)
        seconds = page.evaluate("job => measure(job)", job)
        peak = max((peak_memory(process) or 0 for process in tabs()), default=0)
        browser.close()
    total = sum(network_bytes(folder, bundle.networks[name]) for name in names)
    return {"seconds": seconds, "peak_bytes": peak or None, "weight_bytes": total}


def tabs() -> list[int]:
    """The processes of this process's browser that show pages."""
    parents, renderers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"--type=renderer" in (folder / "cmdline").read_bytes():
                renderers.append(int(folder.name))
        except OSError:  # it has ended
            continue

    def is_ours(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return [process for process in renderers if is_ours(process)]


class Handler(SimpleHTTPRequestHandler):
    """Serves the page and folders by their name, isolated so that threads work."""

    def __init__(self, folders: Mapping[str, Path], *arguments: Any) -> None:
        self.folders = folders
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page itself, or a file."""
        if self.path != "/":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def translate_path(self, path: str) -> str:
        """The file that an address stands for."""
        folder, _, name = path.lstrip("/").partition("/")
        return str(self.folders[folder] / Path(name).name) if folder in self.folders else "/nowhere"

    def end_headers(self) -> None:
        """Also the headers that give a page threads."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def served(folders: Mapping[str, Path]) -> Iterator[str]:
    """The address of a server of the page and of `folders`, by their name."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folders)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


PREPARE: dict[str, Callable[[Call], tuple[Callable[[], object], int]]] = {
    "eager": lambda call: prepare_torch(call, optimized=False),
    "optimize": lambda call: prepare_torch(call, optimized=True),
    "onnx": prepare_onnx,
    "executorch": prepare_executorch,
}


if __name__ == "__main__":
    print(json.dumps(measure(Call(**json.loads(sys.argv[1])))))
