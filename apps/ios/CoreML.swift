// The networks of a bundle in Core ML, and a picture as iOS shows it.
import CoreGraphics
import CoreML

/// Opens the bundle in `folder`; the first time, Core ML compiles its networks, which takes a while.
func openBundle(_ folder: URL) async throws -> sending Sampler {
    let description = try Description.read(folder, target: "coreml")
    var networks: [String: Network] = [:]
    for (name, network) in description.networks {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all  // Neural Engine, GPU and CPU, as Core ML sees fit
        do {
            let compiled = try await compile(network, of: description, in: folder)
            networks[name] = run(try await MLModel.load(contentsOf: compiled, configuration: configuration), network)
        } catch { throw Problem("\(network.file) cannot be loaded: \(error.localizedDescription)") }
    }
    let files = Set(description.texts.compactMap(\.tokenizer))
    let pairs = try files.map { ($0, try readTokenizer(folder.appendingPathComponent($0))) }
    return Sampler(description: description, networks: networks, tokenizers: Dictionary(uniqueKeysWithValues: pairs))
}

/// The compiled package, kept between starts under a name made of its files' hashes.
private func compile(_ network: Description.Network, of description: Description, in folder: URL) async throws -> URL {
    let parts = description.files.filter { $0.key.hasPrefix(network.file + "/") }.sorted { $0.key < $1.key }
    let caches = FileManager.default.urls(for: .cachesDirectory, in: .userDomainMask)[0]
    let kept = caches.appending(path: parts.map { $0.value.sha256.prefix(16) }.joined() + ".mlmodelc")
    if !FileManager.default.fileExists(atPath: kept.path) {
        let compiled = try await MLModel.compileModel(at: folder.appending(path: network.file))
        try FileManager.default.moveItem(at: compiled, to: kept)
    }
    return kept
}

private func run(_ model: MLModel, _ network: Description.Network) -> Network {
    { inputs in
        var features: [String: MLFeatureValue] = [:]
        for port in network.inputs {
            let tensor = inputs[port.name]!
            switch port.dtype {
            case "float32":
                features[port.name] = MLFeatureValue(
                    shapedArray: MLShapedArray<Float>(scalars: tensor.values, shape: tensor.shape))
            case "int32":
                features[port.name] = MLFeatureValue(
                    shapedArray: MLShapedArray<Int32>(scalars: tensor.values.map { Int32($0) }, shape: tensor.shape))
            default: throw Problem("\(port.name) takes \(port.dtype), expected float32 or int32")
            }
        }
        let found = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        return try Dictionary(uniqueKeysWithValues: network.outputs.map { port in
            guard let array = found.featureValue(for: port.name)?.multiArrayValue else {
                throw Problem("\(network.file) gives no \(port.name)")
            }
            let numbers = MLShapedArray<Float>(converting: array)
            return (port.name, Tensor(values: numbers.scalars, shape: numbers.shape))
        })
    }
}

/// A decoded picture, 1 3 H W in about [-1, 1], with 8 bits.
func toImage(_ picture: Tensor) -> CGImage {
    let (height, width) = (picture.shape[2], picture.shape[3]), count = height * width
    var pixels = [UInt8](repeating: 255, count: 4 * count)
    for color in 0..<3 {
        for place in 0..<count {
            let level = min(max(picture.values[color * count + place] / 2 + 0.5, 0), 1) * 255
            pixels[4 * place + color] = UInt8(level.rounded(.toNearestOrEven))
        }
    }
    return CGImage(
        width: width, height: height, bitsPerComponent: 8, bitsPerPixel: 32, bytesPerRow: 4 * width,
        space: CGColorSpace(name: CGColorSpace.sRGB)!,
        bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.noneSkipLast.rawValue),
        provider: CGDataProvider(data: Data(pixels) as CFData)!, decode: nil, shouldInterpolate: false,
        intent: .defaultIntent)!
}
