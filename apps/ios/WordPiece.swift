// Prompts as token ids, by a tokenizer.json of the kind that the miniature has: NFKD, no accents, lower case, words and
// punctuation, WordPiece. For other kinds (CLIP, T5, Gemma): AutoTokenizer of the package swift-transformers.
import Foundation

typealias Tokenizer = (_ text: String, _ longest: Int) -> [Int]

func readTokenizer(_ file: URL) throws -> Tokenizer {
    let rules: Rules
    do { rules = try JSONDecoder().decode(Rules.self, from: Data(contentsOf: file)) } catch {
        throw Problem("\(file.lastPathComponent) is not a WordPiece tokenizer that this app knows")
    }
    return rules.encode
}

private struct Rules: Decodable {
    struct Added: Decodable { let id: Int, content: String }
    struct Kind: Decodable { let type: String }
    struct Normalizers: Decodable { let normalizers: [Kind] }
    struct Named: Decodable { let id: String }
    struct Piece: Decodable { let SpecialToken, Sequence: Named? }
    struct Ids: Decodable { let ids: [Int] }
    struct Template: Decodable { let type: String, single: [Piece], special_tokens: [String: Ids] }
    struct Model: Decodable {
        let type, unk_token, continuing_subword_prefix: String
        let max_input_chars_per_word: Int, vocab: [String: Int]
    }
    enum CodingKeys: CodingKey { case added_tokens, normalizer, pre_tokenizer, post_processor, model }

    let model: Model, vocabulary: [[Unicode.Scalar]: Int], prefix: [Unicode.Scalar], unknown: Int
    let added: [(text: [Unicode.Scalar], id: Int)], before, after: [Int]  // around every text

    init(from decoder: Decoder) throws {
        let json = try decoder.container(keyedBy: CodingKeys.self)
        model = try json.decode(Model.self, forKey: .model)
        let normalizers = try json.decode(Normalizers.self, forKey: .normalizer).normalizers.map(\.type)
        let splitter = try json.decode(Kind.self, forKey: .pre_tokenizer).type
        let template = try json.decode(Template.self, forKey: .post_processor)
        let place = template.single.firstIndex { $0.Sequence != nil }
        guard normalizers == ["NFKD", "StripAccents", "Lowercase"], splitter == "BertPreTokenizer", let place,
            template.type == "TemplateProcessing", model.type == "WordPiece", let id = model.vocab[model.unk_token]
        else { throw Problem("") }
        unknown = id
        prefix = Array(model.continuing_subword_prefix.unicodeScalars)
        vocabulary = Dictionary(model.vocab.map { (Array($0.unicodeScalars), $1) }, uniquingKeysWith: { $1 })
        let special = template.single.map { $0.SpecialToken.flatMap { template.special_tokens[$0.id]?.ids } ?? [] }
        (before, after) = (special[..<place].flatMap { $0 }, special[place...].flatMap { $0 })
        added = try json.decode([Added].self, forKey: .added_tokens).map { (Array($0.content.unicodeScalars), $0.id) }
    }

    func encode(_ text: String, _ longest: Int) -> [Int] {
        let room = max(0, longest - before.count - after.count)
        return before + Array(pieces(Array(text.unicodeScalars)).prefix(room)) + after
    }

    /// The ids of a text, in which added tokens such as [EOS] may be written out.
    private func pieces(_ text: [Unicode.Scalar]) -> [Int] {
        var (ids, start, place): ([Int], Int, Int) = ([], 0, 0)
        while place < text.count {
            let found = added.filter { text[place...].starts(with: $0.text) }.max { $0.text.count < $1.text.count }
            guard let found else { place += 1; continue }
            ids += words(text[start..<place]).flatMap(wordPieces) + [found.id]
            place += found.text.count
            start = place
        }
        return ids + words(text[start...]).flatMap(wordPieces)
    }

    /// Words and single punctuation marks, normalised.
    private func words(_ text: ArraySlice<Unicode.Scalar>) -> [[Unicode.Scalar]] {
        var string = ""
        string.unicodeScalars.append(contentsOf: text)
        var found: [[Unicode.Scalar]] = [[]]
        for scalar in string.decomposedStringWithCompatibilityMapping.unicodeScalars where !isMark(scalar) {
            for lower in scalar.properties.lowercaseMapping.unicodeScalars {
                if lower.properties.isWhitespace {
                    found.append([])
                } else if isPunctuation(lower) {
                    found += [[lower], []]
                } else {
                    found[found.count - 1].append(lower)
                }
            }
        }
        return found.filter { !$0.isEmpty }
    }

    /// The longest known pieces from the left, or the one for unknown words.
    private func wordPieces(_ word: [Unicode.Scalar]) -> [Int] {
        guard word.count <= model.max_input_chars_per_word else { return [unknown] }
        var (ids, start): ([Int], Int) = ([], 0)
        while start < word.count {
            let piece = { (end: Int) in vocabulary[(start > 0 ? prefix : []) + word[start..<end]] }
            guard let end = (start + 1...word.count).last(where: { piece($0) != nil }) else { return [unknown] }
            ids.append(piece(end)!)
            start = end
        }
        return ids
    }
}

private func isMark(_ scalar: Unicode.Scalar) -> Bool {
    [.nonspacingMark, .spacingMark, .enclosingMark].contains(scalar.properties.generalCategory)
}

private func isPunctuation(_ scalar: Unicode.Scalar) -> Bool {
    let kinds: [Unicode.GeneralCategory] = [
        .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
        .finalPunctuation, .otherPunctuation,
    ]
    return kinds.contains(scalar.properties.generalCategory) || "$+<=>^`|~".unicodeScalars.contains(scalar)
}
