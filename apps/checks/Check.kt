// Runs the parts of the app that need no Android, and prints what tests/test_apps.py compares. Argument: a bundle.
import java.io.File
import org.json.JSONArray
import org.json.JSONObject
import org.snapgen.Description
import org.snapgen.Network
import org.snapgen.Sampler
import org.snapgen.Tensor
import org.snapgen.readTokenizer
import org.snapgen.samplingLevels
import org.snapgen.seededNoise

fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val description = Description.read(File(folder, "bundle.json").readText(), "onnx")
    description.checkFiles(folder)
    val text = description.texts[0]
    val file = text.tokenizer!!
    val tokenizer = readTokenizer(File(folder, file).readText())
    val width = text.columns.count()
    val prompts = JSONArray(File(folder, "prompts.json").readText()).let { all -> List(all.length(), all::getString) }

    // Small networks whose sums are exact in fp32.
    val textEncoder = Network { inputs ->
        val ids = inputs.getValue("input_ids").values
        val states = FloatArray(ids.size * width) { (ids[it / width].toInt() + it % width) % 9 / 8f }
        mapOf("states" to Tensor(states, 1, ids.size, width))
    }
    val unet = Network { inputs ->
        val x = inputs.getValue("sample")
        val states = inputs.getValue("encoder_hidden_states").values.reduce(Float::plus)
        val seen = inputs.getValue("encoder_attention_mask").values.reduce(Float::plus)
        val shift = inputs.getValue("timestep").values[0] / 1024 + (states / 64 + seen)
        mapOf("velocity" to Tensor(FloatArray(x.values.size) { x.values[it] * 0.5f + shift }, *x.shape))
    }
    val decoder = Network { inputs -> mapOf("picture" to inputs.getValue("latents")) }
    val networks = mapOf("text_encoder" to textEncoder, "unet" to unet, "decoder" to decoder)
    val sampler = Sampler(description, networks, mapOf(file to tokenizer))
    val pictures = prompts.take(3).mapIndexed { seed, prompt ->
        sampler.sample(prompt, seed.toLong(), steps = 3, guidance = seed.toDouble()).values
    }
    fun numbers(values: FloatArray) = JSONArray(values.map { it.toDouble() })
    val found = JSONObject()
        .put("noise", JSONArray(listOf(17, 64, 4099).map { numbers(seededNoise(-5, it)) }))
        .put("levels", JSONArray(listOf(1.0, 3.0).map { JSONArray(samplingLevels(7, it)) }))
        .put("ids", JSONArray(prompts.map { JSONArray(tokenizer.encode(it, text.tokens.count())) }))
        .put("pictures", JSONArray(pictures.map(::numbers)))
    println(found)
}
