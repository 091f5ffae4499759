// What bundle.json says (src/snapgen/runtime/bundle.py), as far as this app needs it.
import Foundation

/// What the user is told: one line.
struct Problem: LocalizedError {
    let errorDescription: String?
    init(_ line: String) { errorDescription = line }
}

struct Description: Decodable {
    struct Port: Decodable { let name, dtype: String }
    struct Network: Decodable { let file: String, inputs, outputs: [Port] }
    struct Text: Decodable {
        let network: String, tokenizer: String?, prefix: String
        let prefixStart, prefixLength, padToken: Int
        let tokens, columns: [Int]  // first, and one past the last
        let pooled: Bool
        enum CodingKeys: String, CodingKey {
            case network, tokenizer, prefix, tokens, columns, pooled
            case prefixStart = "prefix_start", prefixLength = "prefix_length", padToken = "pad_token"
        }
    }
    struct Latents: Decodable { let channels, height, width, pixels: Int }
    struct Sampling: Decodable { let steps: Int, guidance, shift: Double }
    struct Golden: Decodable { let seed: Int, noise: [Float] }
    struct File: Decodable { let bytes: Int, sha256: String }

    let target: String, networks: [String: Network], texts: [Text], latents: Latents
    let sampling: Sampling, golden: Golden, files: [String: File]

    /// The description of the bundle in `folder`, with what this app relies on checked.
    static func read(_ folder: URL, target: String) throws -> Description {
        struct Version: Decodable { let format: String, version: Int }
        let decoder = JSONDecoder()
        guard let data = try? Data(contentsOf: folder.appendingPathComponent("bundle.json")),
            let version = try? decoder.decode(Version.self, from: data), version.format == "snapgen-bundle"
        else { throw Problem("\(folder.lastPathComponent) has no bundle.json of `snapgen export`") }
        guard version.version == 1 else {
            throw Problem("bundle.json has version \(version.version), expected 1: export the model again")
        }
        let found: Description
        do { found = try decoder.decode(Description.self, from: data) } catch {
            throw Problem("bundle.json is damaged: \(error)")
        }
        guard found.target == target else { throw Problem("the bundle is for \(found.target), expected \(target)") }
        guard found.texts.contains(where: { $0.tokenizer != nil }) else {
            throw Problem("the bundle has no text encoder: it was made of a network alone")
        }
        for text in found.texts where text.tokenizer != nil {
            try found.check(text.network, ["input_ids", "attention_mask"], [], ["states"])
        }
        let unet = ["sample", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
        try found.check("unet", unet, ["pooled_projections"], ["velocity"])
        try found.check("decoder", ["latents"], [], ["picture"])
        for (name, facts) in found.files {
            let path = folder.appendingPathComponent(name).path
            let size = try? FileManager.default.attributesOfItem(atPath: path)[.size] as? Int
            guard size == facts.bytes else { throw Problem("\(name) is missing, or of another export") }
        }
        let golden = seededNoise(seed: found.golden.seed, count: found.golden.noise.count)
        guard zip(golden, found.golden.noise).allSatisfy({ abs($0 - $1) < 1e-6 }) else {
            throw Problem("this device computes another noise than the bundle expects")
        }
        return found
    }

    /// Whether the UNet also reads the pooled vector of a CLIP.
    var readsPooled: Bool { networks["unet"]!.inputs.contains { $0.name == "pooled_projections" } }

    private func check(_ name: String, _ inputs: [String], _ optional: [String], _ outputs: [String]) throws {
        guard let network = networks[name] else { throw Problem("bundle.json lists no network \(name)") }
        let found = network.inputs.map(\.name)
        guard inputs.allSatisfy(found.contains), found.allSatisfy((inputs + optional).contains),
            outputs.allSatisfy(network.outputs.map(\.name).contains)
        else { throw Problem("\(name) has inputs \(found), expected \(inputs)") }
    }
}
