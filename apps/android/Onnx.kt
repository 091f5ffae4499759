// The networks of a bundle in ONNX Runtime.
package org.snapgen

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import java.io.File
import java.nio.FloatBuffer
import java.nio.LongBuffer

/** Opens the bundle in `folder`. */
fun openBundle(folder: File, threads: Int = Runtime.getRuntime().availableProcessors()): Sampler {
    val description = Description.read(File(folder, "bundle.json").readText(), "onnx")
    description.checkFiles(folder)
    val options = OrtSession.SessionOptions().apply { setIntraOpNumThreads(threads) }
    val networks = description.networks.mapValues { (_, network) ->
        try {
            val path = File(folder, network.file).path
            onnxNetwork(OrtEnvironment.getEnvironment().createSession(path, options), network)
        } catch (error: OrtException) {
            throw Problem("${network.file} cannot be loaded: ${error.message}")
        }
    }
    val files = description.texts.mapNotNull { it.tokenizer }
    val tokenizers = files.associateWith { readTokenizer(File(folder, it).readText()) }
    return Sampler(description, networks, tokenizers)
}

private fun onnxNetwork(session: OrtSession, network: Description.Network) = Network { inputs ->
    val given = network.inputs.associate { it.name to onnxTensor(inputs.getValue(it.name), it) }
    try {
        session.run(given).use { found ->
            network.outputs.associateWith { name ->
                val tensor = found.get(name).get() as OnnxTensor
                val numbers = FloatArray(tensor.floatBuffer.remaining()).also(tensor.floatBuffer::get)
                Tensor(numbers, *tensor.info.shape.map { it.toInt() }.toIntArray())
            }
        }
    } finally {
        given.values.forEach(OnnxTensor::close)
    }
}

private fun onnxTensor(tensor: Tensor, port: Port): OnnxTensor {
    val environment = OrtEnvironment.getEnvironment()
    val shape = tensor.shape.map { it.toLong() }.toLongArray()
    return when (port.dtype) {
        "float32" -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(tensor.values), shape)
        "int64" -> {
            val integers = LongArray(tensor.values.size) { tensor.values[it].toLong() }
            OnnxTensor.createTensor(environment, LongBuffer.wrap(integers), shape)
        }
        else -> throw Problem("${port.name} takes ${port.dtype}, expected float32 or int64")
    }
}
