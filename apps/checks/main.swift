// Runs the parts of the app that need no iOS, and prints what tests/test_apps.py compares. Argument: a bundle.
import Foundation

let folder = URL(fileURLWithPath: CommandLine.arguments[1])
let description = try Description.read(folder, target: "coreml")
let file = description.texts[0].tokenizer!
let tokenizer = try readTokenizer(folder.appendingPathComponent(file))
let list = try Data(contentsOf: folder.appendingPathComponent("prompts.json"))
let prompts = try JSONDecoder().decode([String].self, from: list)

// Small networks whose sums are exact in fp32.
func textEncoder(_ text: Description.Text) -> Network {
    let width = text.columns[1] - text.columns[0]
    return { inputs in
        let ids = inputs["input_ids"]!, mask = inputs["attention_mask"]!.values
        var states: [Float] = []
        for (id, seen) in zip(ids.values, mask) {
            for column in 0..<width { states.append(seen * Float((Int(id) + column) % 9) / 8) }
        }
        let sum = ids.values.reduce(0, +)
        let pooled = (0..<width).map { (sum + Float($0)) / 256 }
        return [
            "states": Tensor(values: states, shape: ids.shape + [width]),
            "pooled": Tensor(values: pooled, shape: [1, width]),
        ]
    }
}

func unet(_ inputs: [String: Tensor]) -> [String: Tensor] {
    let x = inputs["sample"]!
    // What is seen counts by its place among all that is seen, so that the order is compared, too.
    let states = inputs["encoder_hidden_states"]!, mask = inputs["encoder_attention_mask"]!.values
    var text: Float = 0
    var place: Float = 1
    for (token, seen) in mask.enumerated() where seen == 1 {
        for column in 0..<states.shape[2] { text += place * states.values[token * states.shape[2] + column] / 4096 }
        place += 1
    }
    let pooled = inputs["pooled_projections"]!.values.reduce(0, +)
    let shift: Float = inputs["timestep"]!.values[0] / 1024 + (text + pooled / 64)
    return ["velocity": Tensor(values: x.values.map { $0 * 0.5 + shift }, shape: x.shape)]
}

func decoder(_ inputs: [String: Tensor]) -> [String: Tensor] { ["picture": inputs["latents"]!] }

var networks: [String: Network] = ["unet": unet, "decoder": decoder]
for text in description.texts where text.tokenizer != nil { networks[text.network] = textEncoder(text) }
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
