// The noise of a seed: the numbers of src/snapgen/flow/noise.py, so that a seed means one picture everywhere.
import Foundation

private let block = 16  // numbers that are transformed together, and the fewest that can be sampled

/// Standard normal numbers of a seed, which counts modulo 2^32.
func seededNoise(seed: Int, count: Int) -> [Float] {
    precondition(count >= block, "noise of \(count) numbers, expected at least \(block)")
    var twister = MersenneTwister(seed: UInt32(truncatingIfNeeded: seed))
    func uniform() -> [Double] { (0..<block).map { _ in Double(twister.next() & 0xFF_FFFF) / 0x1p24 } }
    var noise: [Float] = []
    while noise.count + block <= count { noise += boxMuller(uniform()) }
    if noise.count < count {
        for _ in noise.count..<count { _ = twister.next() }  // sampled, then replaced: the last block overlaps
        noise = noise.prefix(count - block) + boxMuller(uniform())
    }
    return noise
}

/// A block of normal numbers from uniform ones in [0, 1): the first eight give radii, the others angles.
private func boxMuller(_ uniform: [Double]) -> [Float] {
    let half = block / 2
    var numbers = [Float](repeating: 0, count: block)
    for i in 0..<half {
        let radius = sqrt(-2 * log(1 - uniform[i]))
        let angle = Double(Float(2 * Double.pi) * Float(uniform[i + half]))  // rounded as in torch
        numbers[i] = Float(radius * cos(angle))
        numbers[i + half] = Float(radius * sin(angle))
    }
    return numbers
}

/// MT19937 (Matsumoto and Nishimura 1998).
private struct MersenneTwister {
    private var state = [UInt32](repeating: 0, count: 624)
    private var index = 624

    init(seed: UInt32) {
        state[0] = seed
        for i in 1..<624 { state[i] = 1_812_433_253 &* (state[i - 1] ^ (state[i - 1] >> 30)) &+ UInt32(i) }
    }

    mutating func next() -> UInt32 {
        if index == 624 {
            for i in 0..<624 {
                let bits = (state[i] & 0x8000_0000) | (state[(i + 1) % 624] & 0x7FFF_FFFF)
                state[i] = state[(i + 397) % 624] ^ (bits >> 1) ^ (bits & 1 == 1 ? 0x9908_B0DF : 0)
            }
            index = 0
        }
        var word = state[index]
        index += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C_5680
        word ^= (word << 15) & 0xEFC6_0000
        return word ^ (word >> 18)
    }
}
