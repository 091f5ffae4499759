// A screen: a prompt, a seed, a picture.
import SwiftUI

@main
struct SnapGenApp: App {
    var body: some Scene { WindowGroup { ContentView() } }
}

/// Keeps the networks open; one picture at a time, away from the main thread.
actor Painter {
    private var sampler: Sampler?

    func open() async throws {
        guard sampler == nil else { return }
        guard let folder = Bundle.main.url(forResource: "Model", withExtension: "bundle") else {
            throw Problem("the app has no folder Model.bundle: see apps/README.md")
        }
        sampler = try await openBundle(folder)
    }

    func paint(_ prompt: String, seed: Int, afterStep: @Sendable (Int) -> Void) throws -> CGImage {
        toImage(try sampler!.sample(prompt, seed: seed, afterStep: afterStep))
    }
}

struct ContentView: View {
    @State private var painter = Painter()
    @State private var prompt = "two red apples"
    @State private var seed = 0
    @State private var picture: CGImage?
    @State private var message = ""
    @State private var busy = false

    var body: some View {
        VStack(spacing: 16) {
            if let picture {
                Image(picture, scale: 1, label: Text(prompt)).resizable().interpolation(.none).scaledToFit()
            }
            TextField("Prompt", text: $prompt).onSubmit(paint)
            Stepper("Seed \(seed)", value: $seed, in: 0...Int(UInt32.max))
            Button("Make the picture", action: paint).buttonStyle(.borderedProminent).disabled(busy)
            Text(message).font(.footnote)
        }
        .textFieldStyle(.roundedBorder)
        .padding()
    }

    private func paint() {
        guard !busy else { return }
        busy = true
        message = "Opening the model"
        Task {
            do {
                try await painter.open()
                picture = try await painter.paint(prompt, seed: seed) { step in
                    Task { @MainActor in message = "Step \(step)" }
                }
                message = ""
            } catch { message = error.localizedDescription }
            busy = false
        }
    }
}
