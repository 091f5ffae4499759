// Prompts as token ids, by a tokenizer.json of the kind that the miniature has: NFKD, no accents, lower case, words and
// punctuation, WordPiece. Others (CLIP, T5, Gemma) need a library that reads tokenizer.json.
package org.snapgen

import java.text.Normalizer
import java.util.Locale
import org.json.JSONException
import org.json.JSONObject

/** A text as at most `longest` ids. */
fun interface Tokenizer {
    fun encode(text: String, longest: Int): List<Int>
}

/** The tokenizer of the content of a tokenizer.json. */
fun readTokenizer(content: String): Tokenizer =
    try {
        WordPiece(JSONObject(content))
    } catch (error: JSONException) {
        throw Problem("this is not a WordPiece tokenizer that this app knows: ${error.message}")
    }

private class WordPiece(json: JSONObject) : Tokenizer {
    private val model = json.getJSONObject("model")
    private val vocabulary = model.getJSONObject("vocab").let { it.keys().asSequence().associateWith(it::getInt) }
    private val unknown = vocabulary.getValue(model.getString("unk_token"))
    private val prefix = model.getString("continuing_subword_prefix")
    private val longestWord = model.getInt("max_input_chars_per_word")
    private val added = json.getJSONArray("added_tokens").objects()
        .associate { it.getString("content") to it.getInt("id") }
    private val before: List<Int> // around every text
    private val after: List<Int>

    init {
        val template = json.getJSONObject("post_processor")
        val pieces = template.getJSONArray("single").objects()
        val normalizers = json.getJSONObject("normalizer").getJSONArray("normalizers").objects()
        val parts = normalizers + listOf(json.getJSONObject("pre_tokenizer"), model, template)
        val kinds = parts.map { it.getString("type") }
        if (kinds != KINDS) throw JSONException("it has $kinds, expected $KINDS")
        val special = pieces.map { piece ->
            val name = piece.optJSONObject("SpecialToken")?.getString("id") ?: return@map emptyList()
            val ids = template.getJSONObject("special_tokens").getJSONObject(name).getJSONArray("ids")
            List(ids.length(), ids::getInt)
        }
        val place = pieces.indexOfFirst { it.has("Sequence") }
        before = special.take(place).flatten()
        after = special.drop(place).flatten()
    }

    override fun encode(text: String, longest: Int): List<Int> =
        before + pieces(text).take(maxOf(0, longest - before.size - after.size)) + after

    /** The ids of a text, in which added tokens such as [EOS] may be written out. */
    private fun pieces(text: String): List<Int> {
        val ids = mutableListOf<Int>()
        var start = 0
        var place = 0
        while (place < text.length) {
            val found = added.keys.filter { text.startsWith(it, place) }.maxByOrNull { it.length }
            if (found == null) {
                place++
                continue
            }
            ids += words(text.substring(start, place)).flatMap(::wordPieces) + added.getValue(found)
            place += found.length
            start = place
        }
        return ids + words(text.substring(start)).flatMap(::wordPieces)
    }

    /** Words and single punctuation marks, normalised. */
    private fun words(text: String): List<String> {
        val found = mutableListOf(StringBuilder())
        for (point in points(Normalizer.normalize(text, Normalizer.Form.NFKD))) {
            if (Character.getType(point).toByte() in MARKS) continue
            for (lower in points(String(Character.toChars(point)).lowercase(Locale.ROOT))) {
                if (isSpace(lower) || isPunctuation(lower)) found += StringBuilder()
                if (!isSpace(lower)) found.last().appendCodePoint(lower)
                if (isPunctuation(lower)) found += StringBuilder()
            }
        }
        return found.map { it.toString() }.filter { it.isNotEmpty() }
    }

    /** The longest known pieces from the left, or the one for unknown words. */
    private fun wordPieces(word: String): List<Int> {
        val points = points(word)
        if (points.size > longestWord) return listOf(unknown)
        val ids = mutableListOf<Int>()
        var start = 0
        while (start < points.size) {
            val piece = { end: Int -> vocabulary[(if (start > 0) prefix else "") + String(points, start, end - start)] }
            val end = (points.size downTo start + 1).firstOrNull { piece(it) != null } ?: return listOf(unknown)
            ids += piece(end)!!
            start = end
        }
        return ids
    }
}

private val KINDS = listOf("NFKD", "StripAccents", "Lowercase", "BertPreTokenizer", "WordPiece", "TemplateProcessing")
private val MARKS = setOf(Character.NON_SPACING_MARK, Character.COMBINING_SPACING_MARK, Character.ENCLOSING_MARK)
private val PUNCTUATION = setOf(
    Character.CONNECTOR_PUNCTUATION, Character.DASH_PUNCTUATION, Character.START_PUNCTUATION, Character.END_PUNCTUATION,
    Character.INITIAL_QUOTE_PUNCTUATION, Character.FINAL_QUOTE_PUNCTUATION, Character.OTHER_PUNCTUATION,
)

private fun points(text: String): IntArray = text.codePoints().toArray()

private fun isSpace(point: Int) = point in 9..13 || point == 0x85 || Character.isSpaceChar(point)

private fun isPunctuation(point: Int) =
    Character.getType(point).toByte() in PUNCTUATION || (point < 128 && point.toChar() in "$+<=>^`|~")
