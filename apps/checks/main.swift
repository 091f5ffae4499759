// Runs the parts of the app that need no iOS, and prints what tests/test_apps.py compares. Argument: a bundle.
import Foundation

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let description = try Description.read(folder, target: "coreml")
let file = description.texts[0].tokenizer!
let tokenizer = try readTokenizer(folder.appendingPathComponent(file))
let list = try Data(contentsOf: folder.appendingPathComponent("prompts.json"))
let prompts = try JSONDecoder().decode([String].self, from: list)
let width = description.texts[0].columns[1]

// Small networks whose sums are exact in fp32.
func textEncoder(_ inputs: [String: Tensor]) -> [String: Tensor] {
    let ids = inputs["input_ids"]!, mask = inputs["attention_mask"]!.values
    var states: [Float] = []
    for (id, seen) in zip(ids.values, mask) {
        for column in 0..<width { states.append(seen * Float((Int(id) + column) % 9) / 8) }
    }
    return ["states": Tensor(values: states, shape: ids.shape + [width])]
}

func unet(_ inputs: [String: Tensor]) -> [String: Tensor] {
    let x = inputs["sample"]!
    let states = inputs["encoder_hidden_states"]!.values.reduce(0, +)
    let seen = inputs["encoder_attention_mask"]!.values.reduce(0, +)
    let shift: Float = inputs["timestep"]!.values[0] / 1024 + (states / 64 + seen)
    return ["velocity": Tensor(values: x.values.map { $0 * 0.5 + shift }, shape: x.shape)]
}

func decoder(_ inputs: [String: Tensor]) -> [String: Tensor] { ["picture": inputs["latents"]!] }

let networks: [String: Network] = ["text_encoder": textEncoder, "unet": unet, "decoder": decoder]
let sampler = Sampler(description: description, networks: networks, tokenizers: [file: tokenizer])
let pictures = try prompts.prefix(3).enumerated().map { seed, prompt in
    try sampler.sample(prompt, seed: seed, steps: 3, guidance: Double(seed)).values.map { Double($0) }
}
let longest = description.texts[0].tokens[1]
let found: [String: Any] = [
    "noise": [17, 64, 4099].map { seededNoise(seed: -5, count: $0).map { Double($0) } },
    "levels": [1.0, 3.0].map { shift in samplingLevels(steps: 7, shift: shift) },
    "ids": prompts.map { tokenizer($0, longest) },
    "pictures": pictures,
]
print(String(decoding: try JSONSerialization.data(withJSONObject: found), as: UTF8.self))
