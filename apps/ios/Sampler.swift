// From a prompt and a seed to a picture: the loop of src/snapgen/runtime/pipeline.py, for networks of a fixed size.
import Foundation

let timestepScale = 1000.0  // the network is given 1000 * sigma

/// Numbers of an input or output; ids and masks, too, which fp32 holds exactly.
struct Tensor {
    var values: [Float]
    let shape: [Int]
}

/// A network: inputs by name -> outputs by name.
typealias Network = ([String: Tensor]) throws -> [String: Tensor]

/// The levels that Euler steps visit, `steps + 1` fp32 numbers: from 1, evenly spaced before the shift, to 0.
func samplingLevels(steps: Int, shift: Double) -> [Double] {
    (0..<steps).map { index in
        let sigma = Double(steps - index) / Double(steps)
        return Double(Float(shift * sigma / (1 + (shift - 1) * sigma)))
    } + [0]
}

struct Sampler {
    let description: Description
    let networks: [String: Network]
    let tokenizers: [String: Tokenizer]  // by file

    /// The picture of `prompt`, 3 H W in about [-1, 1]; `afterStep` is called with 1, 2, ...
    func sample(
        _ prompt: String, seed: Int, steps: Int? = nil, guidance: Double? = nil, afterStep: (Int) -> Void = { _ in }
    ) throws -> Tensor {
        let own = description.sampling, size = description.latents
        let guidance = guidance ?? own.guidance
        let text = try encode(prompt), negative = guidance > 1 ? try encode("") : nil
        let shape = [1, size.channels, size.height, size.width]
        var x = Tensor(values: seededNoise(seed: seed, count: shape.reduce(1, *)), shape: shape)
        let levels = samplingLevels(steps: steps ?? own.steps, shift: own.shift)
        for (index, (sigma, following)) in zip(levels, levels.dropFirst()).enumerated() {
            var velocity = try self.velocity(x, sigma, text)
            if let negative {  // guidance: away from the empty text
                let scale = Float(guidance)
                velocity = zip(velocity, try self.velocity(x, sigma, negative)).map { $1 + scale * ($0 - $1) }
            }
            let stride = Float(following - sigma)
            x.values = zip(x.values, velocity).map { $0 + stride * $1 }  // Eq. 3
            afterStep(index + 1)
        }
        let picture = try networks["decoder"]!(["latents": x])["picture"]!
        guard picture.values.allSatisfy(\.isFinite) else { throw Problem("the picture is not finite") }
        return picture
    }

    private func velocity(_ x: Tensor, _ sigma: Double, _ text: [String: Tensor]) throws -> [Float] {
        let timestep = Tensor(values: [Float(timestepScale * sigma)], shape: [1])
        let inputs = text.merging(["sample": x, "timestep": timestep]) { $1 }
        return try networks["unet"]!(inputs)["velocity"]!.values
    }

    /// What the UNet reads of `prompt`: all text encoders' states, joined, their mask, and the CLIPs' pooled vectors.
    private func encode(_ prompt: String) throws -> [String: Tensor] {
        let texts = description.texts
        let length = texts.map { $0.tokens[1] }.max()!, width = texts.map { $0.columns[1] }.max()!
        var states = Tensor(values: .init(repeating: 0, count: length * width), shape: [1, length, width])
        var mask = Tensor(values: .init(repeating: 0, count: length), shape: [1, length])
        let pooledWidth = texts.filter(\.pooled).map { $0.columns[1] }.max() ?? 0
        var pooled = Tensor(values: .init(repeating: 0, count: pooledWidth), shape: [1, pooledWidth])
        for text in texts {
            let first = text.tokens[0], column = text.columns[0]
            guard let file = text.tokenizer, prompt.contains(where: { !$0.isWhitespace }) else {
                mask.values[first] = 1  // no text: zeros, and only the first token is seen
                continue
            }
            let longest = text.tokens[1] - first + text.prefixLength
            let ids = tokenizers[file]!(text.prefix + prompt, longest)
            let padding = longest - ids.count
            let seen = [Float](repeating: 1, count: ids.count) + [Float](repeating: 0, count: padding)
            let padded = (ids + [Int](repeating: text.padToken, count: padding)).map(Float.init)
            let found = try networks[text.network]!([
                "input_ids": Tensor(values: padded, shape: [1, longest]),
                "attention_mask": Tensor(values: seen, shape: [1, longest]),
            ])
            let own = text.columns[1] - column, prefix = text.prefixStart..<text.prefixStart + text.prefixLength
            for (place, token) in (0..<longest).filter({ !prefix.contains($0) }).enumerated() {
                let start = (first + place) * width + column
                states.values.replaceSubrange(
                    start..<start + own, with: found["states"]!.values[token * own..<(token + 1) * own])
                mask.values[first + place] = max(mask.values[first + place], seen[token])
            }
            if text.pooled, description.readsPooled {
                pooled.values.replaceSubrange(column..<column + own, with: found["pooled"]!.values)
            }
        }
        let joined = ["encoder_hidden_states": states, "encoder_attention_mask": mask]
        return description.readsPooled ? joined.merging(["pooled_projections": pooled]) { $1 } : joined
    }
}
