// The noise of a seed: the numbers of src/snapgen/flow/noise.py, so that a seed means one picture everywhere.
package org.snapgen

import kotlin.math.cos
import kotlin.math.ln
import kotlin.math.sin
import kotlin.math.sqrt

private const val BLOCK = 16 // numbers that are transformed together, and the fewest that can be sampled
private const val TWO_PI = (2 * Math.PI).toFloat()

/** Standard normal numbers of a seed, which counts modulo 2^32. */
fun seededNoise(seed: Long, count: Int): FloatArray {
    require(count >= BLOCK) { "noise of $count numbers, expected at least $BLOCK" }
    val twister = MersenneTwister(seed.toInt())
    val noise = FloatArray(count)
    fun fill(start: Int) {
        val uniform = DoubleArray(BLOCK) { (twister.next() and 0xFFFFFF) / (1 shl 24).toDouble() }
        boxMuller(uniform).copyInto(noise, start)
    }
    val whole = count - count % BLOCK
    for (start in 0 until whole step BLOCK) fill(start)
    if (whole < count) {
        repeat(count - whole) { twister.next() } // sampled, then replaced: the last block overlaps the one before
        fill(count - BLOCK)
    }
    return noise
}

/** A block of normal numbers from uniform ones in [0, 1): the first eight give radii, the others angles. */
private fun boxMuller(uniform: DoubleArray): FloatArray {
    val half = BLOCK / 2
    val numbers = FloatArray(BLOCK)
    for (i in 0 until half) {
        val radius = sqrt(-2 * ln(1 - uniform[i]))
        val angle = (TWO_PI * uniform[i + half].toFloat()).toDouble() // rounded as in torch
        numbers[i] = (radius * cos(angle)).toFloat()
        numbers[i + half] = (radius * sin(angle)).toFloat()
    }
    return numbers
}

/** MT19937 (Matsumoto and Nishimura 1998); 32-bit words as Int. */
private class MersenneTwister(seed: Int) {
    private val state = IntArray(624)
    private var index = 624

    init {
        state[0] = seed
        for (i in 1 until 624) state[i] = 1812433253 * (state[i - 1] xor (state[i - 1] ushr 30)) + i
    }

    fun next(): Int {
        if (index == 624) {
            for (i in 0 until 624) {
                val bits = (state[i] and Int.MIN_VALUE) or (state[(i + 1) % 624] and Int.MAX_VALUE)
                state[i] = state[(i + 397) % 624] xor (bits ushr 1) xor (if (bits and 1 == 1) 0x9908B0DF.toInt() else 0)
            }
            index = 0
        }
        var word = state[index++]
        word = word xor (word ushr 11)
        word = word xor ((word shl 7) and 0x9D2C5680.toInt())
        word = word xor ((word shl 15) and 0xEFC60000.toInt())
        return word xor (word ushr 18)
    }
}
