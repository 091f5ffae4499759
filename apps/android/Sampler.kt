// From a prompt and a seed to a picture: the loop of src/snapgen/runtime/pipeline.py.
package org.snapgen

const val TIMESTEP_SCALE = 1000.0 // the network is given 1000 * sigma

/** Numbers of an input or output; ids and masks, too, which fp32 holds exactly. */
class Tensor(val values: FloatArray, vararg val shape: Int)

/** A network: inputs by name -> outputs by name. */
fun interface Network {
    fun run(inputs: Map<String, Tensor>): Map<String, Tensor>
}

/** The levels that Euler steps visit, `steps + 1` fp32 numbers: from 1, evenly spaced before the shift, to 0. */
fun samplingLevels(steps: Int, shift: Double): List<Double> =
    List(steps) { index ->
        val sigma = (steps - index) / steps.toDouble()
        (shift * sigma / (1 + (shift - 1) * sigma)).toFloat().toDouble()
    } + 0.0

class Sampler(
    val description: Description,
    private val networks: Map<String, Network>,
    private val tokenizers: Map<String, Tokenizer>, // by file
) {
    /**
     * The picture of `prompt`, 1 3 H W in about [-1, 1]; `afterStep` is called with 1, 2, ...
     *
     * height, width: in pixels, like steps and guidance by default the model's own.
     */
    fun sample(
        prompt: String,
        seed: Long,
        steps: Int = description.sampling.steps,
        guidance: Double = description.sampling.guidance,
        height: Int = description.latents.height * description.latents.pixels,
        width: Int = description.latents.width * description.latents.pixels,
        afterStep: (Int) -> Unit = {},
    ): Tensor {
        val latents = description.latents
        val unit = latents.pixels * latents.multiple
        if (height % unit != 0 || width % unit != 0) {
            throw Problem("size ${width}x$height: the bundle takes multiples of $unit")
        }
        val shape = intArrayOf(1, latents.channels, height / latents.pixels, width / latents.pixels)
        val text = encode(prompt)
        val negative = if (guidance > 1) encode("") else null
        var x = seededNoise(seed, shape.reduce(Int::times))
        for ((index, level) in samplingLevels(steps, description.sampling.shift).zipWithNext().withIndex()) {
            val (sigma, following) = level
            val velocity = velocity(x, shape, sigma, text)
            if (negative != null) { // guidance: away from the empty text
                val other = velocity(x, shape, sigma, negative)
                val scale = guidance.toFloat()
                for (i in velocity.indices) velocity[i] = other[i] + scale * (velocity[i] - other[i])
            }
            val stride = (following - sigma).toFloat()
            x = FloatArray(x.size) { x[it] + stride * velocity[it] } // Eq. 3
            afterStep(index + 1)
        }
        val picture = run("decoder", mapOf("latents" to Tensor(x, *shape))).getValue("picture")
        if (picture.values.any { !it.isFinite() }) throw Problem("the picture is not finite")
        return picture
    }

    private fun run(network: String, inputs: Map<String, Tensor>) = networks.getValue(network).run(inputs)

    private fun velocity(x: FloatArray, shape: IntArray, sigma: Double, text: Map<String, Tensor>): FloatArray {
        val timestep = Tensor(floatArrayOf((TIMESTEP_SCALE * sigma).toFloat()), 1)
        val inputs = text + mapOf("sample" to Tensor(x, *shape), "timestep" to timestep)
        return run("unet", inputs).getValue("velocity").values
    }

    /** What the UNet reads of `prompt`: the states of all text encoders' tokens that are seen, and pooled vectors. */
    private fun encode(prompt: String): Map<String, Tensor> {
        val texts = description.texts
        val width = texts.maxOf { it.columns.last + 1 }
        val rows = sortedMapOf<Int, FloatArray>() // by place among all encoders' tokens
        val pooled = FloatArray(texts.filter { it.pooled }.maxOfOrNull { it.columns.last + 1 } ?: 0)
        for (text in texts) {
            val first = text.tokens.first
            if (text.tokenizer == null || prompt.isBlank()) {
                rows.getOrPut(first) { FloatArray(width) } // no text: zeros, and only the first token is seen
                continue
            }
            val longest = text.tokens.count() + text.prefixTokens.count()
            val ids = tokenizers.getValue(text.tokenizer).encode(text.prefix + prompt, longest)
            val found = run(text.network, mapOf(
                "input_ids" to Tensor(FloatArray(ids.size) { ids[it].toFloat() }, 1, ids.size),
                "attention_mask" to ones(ids.size),
            ))
            val own = text.columns.count()
            val column = text.columns.first
            ids.indices.filter { it !in text.prefixTokens }.forEachIndexed { place, token ->
                val row = rows.getOrPut(first + place) { FloatArray(width) }
                found.getValue("states").values.copyInto(row, column, token * own, (token + 1) * own)
            }
            if (text.pooled && description.readsPooled) found.getValue("pooled").values.copyInto(pooled, column)
        }
        val states = FloatArray(rows.size * width)
        rows.values.forEachIndexed { place, row -> row.copyInto(states, place * width) }
        val joined = mapOf(
            "encoder_hidden_states" to Tensor(states, 1, rows.size, width),
            "encoder_attention_mask" to ones(rows.size),
        )
        if (!description.readsPooled) return joined
        return joined + ("pooled_projections" to Tensor(pooled, 1, pooled.size))
    }
}

private fun ones(count: Int) = Tensor(FloatArray(count) { 1f }, 1, count)

/** A decoded picture's pixels, 0xAARRGGBB, row by row. */
fun toPixels(picture: Tensor): IntArray {
    val count = picture.values.size / 3
    return IntArray(count) { place ->
        (0..2).fold(0xFF) { pixel, color ->
            val level = (picture.values[color * count + place] / 2 + 0.5f).coerceIn(0f, 1f) * 255
            (pixel shl 8) or Math.rint(level.toDouble()).toInt()
        }
    }
}
