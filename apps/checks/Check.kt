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
    val prompts = JSONArray(File(folder, "prompts.json").readText()).let { all -> List(all.length(), all::getString) }

    // Small networks whose sums are exact in fp32.
    fun textEncoder(width: Int) = Network { inputs ->
        val ids = inputs.getValue("input_ids").values
        val states = FloatArray(ids.size * width) { (ids[it / width].toInt() + it % width) % 9 / 8f }
        val pooled = FloatArray(width) { (ids.sum() + it) / 256 }
        mapOf("states" to Tensor(states, 1, ids.size, width), "pooled" to Tensor(pooled, 1, width))
    }
    val unet = Network { inputs ->
        val x = inputs.getValue("sample")
        // What is seen counts by its place among all that is seen, so that the order is compared, too.
        val states = inputs.getValue("encoder_hidden_states")
        val weighted = states.values.mapIndexed { index, value -> (index / states.shape[2] + 1) * value / 4096 }
        val text = weighted.reduce(Float::plus)
        val pooled = inputs.getValue("pooled_projections").values.reduce(Float::plus)
        val shift = inputs.getValue("timestep").values[0] / 1024 + (text + pooled / 64)
        mapOf("velocity" to Tensor(FloatArray(x.values.size) { x.values[it] * 0.5f + shift }, *x.shape))
    }
    val decoder = Network { inputs -> mapOf("picture" to inputs.getValue("latents")) }
    val encoders = description.texts.filter { it.tokenizer != null }
    val networks = mapOf("unet" to unet, "decoder" to decoder) +
        encoders.associate { it.network to textEncoder(it.columns.count()) }
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
