"""Runs bundles with ONNX Runtime, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from snapgen.messages import one_line
from snapgen.runtime.bundle import Network, read_bundle
from snapgen.runtime.pipeline import Arrays, BundlePipeline, Runner, read_tokenizers

ERRORS_ONLY = 3  # of ONNX Runtime's log


def open_bundle(folder: Path, threads: int | None = None) -> BundlePipeline:
    """The pipeline of the ONNX bundle in `folder`; ValueError saying what is wrong with it.

    threads: of every network; by default, as many as there are cores.
    """
    bundle = read_bundle(folder, "onnx")
    networks = {name: open_network(network, folder, threads) for name, network in bundle.networks.items()}
    tokenizers = [text.tokenizer for text in bundle.texts if text.tokenizer is not None]
    return BundlePipeline(bundle, networks, read_tokenizers(folder, tokenizers))


def open_network(network: Network, folder: Path, threads: int | None = None) -> Runner:
    """The network in `folder` as a function; ValueError if its file is damaged or has other inputs or outputs."""
    path = folder / network.file
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    # Every network has threads of its own. Those that wait must not take the cores from those that work: a picture took
    # 1.6 times as long on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class for each of its codes, below Exception or RuntimeError
        raise ValueError(f"{path} cannot be loaded: {one_line(error, 300)}") from error
    for kind, ports, found in (
        ("inputs", network.inputs, session.get_inputs()),
        ("outputs", network.outputs, session.get_outputs()),
    ):
        listed, names = [port.name for port in ports], [port.name for port in found]
        if listed != names:
            raise ValueError(f"{path} has {kind} {', '.join(names)}, the bundle lists {', '.join(listed)}")
    outputs = [port.name for port in network.outputs]

    def run(inputs: Arrays) -> dict[str, np.ndarray]:
        try:
            found: Sequence[np.ndarray] = session.run(outputs, dict(inputs))
        except Exception as error:
            raise ValueError(f"{path} cannot compute this: {one_line(error, 300)}") from error
        return dict(zip(outputs, found, strict=True))

    return run
