// A screen: a prompt, a seed, a picture.
package org.snapgen

import android.app.Activity
import android.graphics.Bitmap
import android.os.Bundle
import android.text.InputType
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import java.io.File
import java.io.IOException
import java.util.concurrent.Executors

class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private var sampler: Sampler? = null // the worker's alone

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val prompt = EditText(this).apply { setText("two red apples") }
        val seed = EditText(this).apply { setText("0") }
        seed.inputType = InputType.TYPE_CLASS_NUMBER
        val button = Button(this).apply { text = "Make the picture" }
        val message = TextView(this)
        val picture = ImageView(this).apply { adjustViewBounds = true }
        val column = LinearLayout(this).apply { orientation = LinearLayout.VERTICAL }
        column.fitsSystemWindows = true
        listOf(prompt, seed, button, message, picture).forEach(column::addView)
        setContentView(column)
        button.setOnClickListener {
            button.isEnabled = false
            message.text = "Opening the model"
            val wish = prompt.text.toString() to (seed.text.toString().toLongOrNull() ?: 0)
            worker.execute {
                val made = runCatching {
                    val opened = sampler ?: openBundle(unpack()).also { sampler = it }
                    bitmap(opened.sample(wish.first, wish.second) { runOnUiThread { message.text = "Step $it" } })
                }
                runOnUiThread {
                    made.onSuccess(picture::setImageBitmap)
                    message.text = made.exceptionOrNull()?.message?.lineSequence()?.first().orEmpty()
                    button.isEnabled = true
                }
            }
        }
    }

    override fun onDestroy() {
        worker.shutdown()
        super.onDestroy()
    }

    /** The folder assets/model as files, which ONNX Runtime needs; copied when the app has another bundle. */
    private fun unpack(): File {
        val folder = File(filesDir, "model")
        val description = File(folder, "bundle.json")
        try {
            val text = assets.open("model/bundle.json").use { it.readBytes() }.decodeToString()
            if (description.isFile && description.readText() == text) return folder
            folder.deleteRecursively()
            for (name in Description.read(text, "onnx").files.keys) {
                val file = File(folder, name).apply { parentFile?.mkdirs() }
                assets.open("model/$name").use { source -> file.outputStream().use { source.copyTo(it) } }
            }
            description.writeText(text) // last: a copy that was cut short is made again
        } catch (error: IOException) {
            throw Problem("assets/model is not a whole bundle: ${error.message}")
        }
        return folder
    }
}

private fun bitmap(picture: Tensor): Bitmap {
    val (height, width) = picture.shape.takeLast(2)
    return Bitmap.createBitmap(toPixels(picture), width, height, Bitmap.Config.ARGB_8888)
}
