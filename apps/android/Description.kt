// What bundle.json says (src/snapgen/runtime/bundle.py), as far as this app needs it.
package org.snapgen

import java.io.File
import kotlin.math.abs
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** What the user is told: one line. */
class Problem(line: String) : Exception(line)

class Port(val name: String, val dtype: String)

class Description(json: JSONObject) {
    class Network(json: JSONObject) {
        val file: String = json.getString("file")
        val inputs = json.getJSONArray("inputs").objects().map { Port(it.getString("name"), it.getString("dtype")) }
        val outputs = json.getJSONArray("outputs").objects().map { it.getString("name") }
    }

    class Text(json: JSONObject) {
        val network: String = json.getString("network")
        val tokenizer: String? = if (json.isNull("tokenizer")) null else json.getString("tokenizer")
        val prefix: String = json.getString("prefix")
        val prefixTokens = json.getInt("prefix_start").let { it until it + json.getInt("prefix_length") }
        val tokens = json.getJSONArray("tokens").let { it.getInt(0) until it.getInt(1) }
        val columns = json.getJSONArray("columns").let { it.getInt(0) until it.getInt(1) }
        val pooled = json.getBoolean("pooled")
    }

    class Latents(json: JSONObject) {
        val channels = json.getInt("channels")
        val height = json.getInt("height") // by default
        val width = json.getInt("width")
        val multiple = json.getInt("multiple") // that sides must be of
        val pixels = json.getInt("pixels") // per latent position, along each side
    }

    class Sampling(json: JSONObject) {
        val steps = json.getInt("steps")
        val guidance = json.getDouble("guidance")
        val shift = json.getDouble("shift")
    }

    val target: String = json.getString("target")
    val networks = json.getJSONObject("networks").objects().mapValues { Network(it.value) }
    val texts = json.getJSONArray("texts").objects().map(::Text)
    val latents = Latents(json.getJSONObject("latents"))
    val sampling = Sampling(json.getJSONObject("sampling"))
    val files = json.getJSONObject("files").objects().mapValues { it.value.getLong("bytes") }
    private val golden = json.getJSONObject("golden")

    /** Whether the UNet also reads the pooled vector of a CLIP. */
    val readsPooled get() = networks.getValue("unet").inputs.any { it.name == "pooled_projections" }

    /** Problem naming the first file that is missing in `folder` or has another size. */
    fun checkFiles(folder: File) {
        for ((name, bytes) in files) {
            if (File(folder, name).length() != bytes) throw Problem("$name is missing, or of another export")
        }
    }

    private fun check(target: String) {
        if (this.target != target) throw Problem("the bundle is for ${this.target}, expected $target")
        val encoders = texts.filter { it.tokenizer != null }.map { it.network }
        if (encoders.isEmpty()) throw Problem("the bundle has no text encoder: it was made of a network alone")
        for (name in encoders) check(name, listOf("input_ids", "attention_mask"), "states")
        val inputs = listOf("sample", "timestep", "encoder_hidden_states", "encoder_attention_mask")
        check("unet", inputs, "velocity", optional = "pooled_projections")
        check("decoder", listOf("latents"), "picture")
        val expected = golden.getJSONArray("noise")
        val noise = seededNoise(golden.getLong("seed"), expected.length())
        if (noise.indices.any { abs(noise[it] - expected.getDouble(it)) > 1e-6 }) {
            throw Problem("this device computes another noise than the bundle expects")
        }
    }

    private fun check(name: String, inputs: List<String>, output: String, optional: String = "") {
        val network = networks[name] ?: throw Problem("bundle.json lists no network $name")
        val found = network.inputs.map { it.name }
        if (!found.containsAll(inputs) || !(inputs + optional).containsAll(found) || output !in network.outputs) {
            throw Problem("$name has inputs $found and outputs ${network.outputs}, expected $inputs and $output")
        }
    }

    companion object {
        /** The description in the text of a bundle.json, with what this app relies on checked. */
        fun read(text: String, target: String): Description =
            try {
                val json = JSONObject(text)
                val (format, version) = json.opt("format") to json.opt("version")
                if (format != "snapgen-bundle") throw Problem("bundle.json does not describe a bundle")
                if (version != 1) throw Problem("bundle.json has version $version, expected 1: export the model again")
                Description(json).apply { check(target) }
            } catch (error: JSONException) {
                throw Problem("bundle.json is damaged: ${error.message}")
            }
    }
}

fun JSONArray.objects(): List<JSONObject> = List(length(), ::getJSONObject)

fun JSONObject.objects(): Map<String, JSONObject> = keys().asSequence().associateWith(::getJSONObject)
