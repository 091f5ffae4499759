"""The web app in a real browser, with a tiny model: it draws what Python draws, offline too, and says what is wrong."""

import http.server
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from snapgen.pipeline.load import load_pipeline
from snapgen.web.serve import SiteServer, site_files, write_site

ROOT = Path(__file__).parents[2]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
SECONDS = 60_000  # ms that the slowest wait may take on a busy machine
PICTURE = "#caption:not([hidden])"
LONG = "A Café, two red apples and a dog_house: 3 " * 3

pytestmark = pytest.mark.slow

Serve = Callable[[dict[str, Path]], SiteServer]


@pytest.fixture(scope="module")
def files(app: Path, tiny_bundle: Path) -> dict[str, Path]:
    """The app with the tiny model."""
    return site_files(tiny_bundle, app)


@pytest.fixture
def described(files: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """The same with changes in the model's description."""

    def change(**changes: Any) -> dict[str, Path]:
        content = json.loads(files["model/bundle.json"].read_text()) | changes
        (tmp_path / "bundle.json").write_text(json.dumps(content))
        return files | {"model/bundle.json": tmp_path / "bundle.json"}

    return change


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A fresh browser; whatever a page of it complains of fails the test, and so do requests to elsewhere."""
    context = browser.new_context(reduced_motion="reduce", viewport={"width": 1100, "height": 800})
    context.set_default_timeout(SECONDS)
    complaints: list[str] = []
    requested: set[str] = set()
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.on("request", lambda request: requested.add(request.url.split("/")[2]))
    yield context
    context.close()
    assert [text for text in complaints if "Failed to load resource" not in text] == []
    assert len(requested) <= 1


def opened(context: Any, server: SiteServer) -> Any:
    page = context.new_page()
    page.goto(server.url)
    return page


def choose(page: Any, prompt: str, **settings: int | str) -> None:
    """Fills in the form, when it knows the model."""
    page.wait_for_selector("#model:not(:empty)")
    page.get_by_label("What should it show?").fill(prompt)
    page.evaluate("document.querySelector('details').open = true")
    for label, value in settings.items():
        field = page.get_by_label(label, exact=True)
        if label in ("Width", "Height"):
            field.select_option(str(value))
        else:
            field.fill(str(value))


def draw(page: Any) -> None:
    page.get_by_role("button", name="Draw", exact=True).click()


def saved(page: Any) -> Image.Image:
    """The picture on the stage, as its file holds it."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))
    picture.info["name"] = download.value.suggested_filename
    return picture


def drawn_by_python(model: Path, prompt: str, seed: int, **settings: Any) -> np.ndarray:
    """H W 3, from 0 to 255, not rounded."""
    generator = torch.Generator().manual_seed(seed)
    pipeline = load_pipeline(str(model))
    levels: np.ndarray = pipeline(prompt, generator=generator, output_type="np", **settings).images[0] * 255
    return levels


def decibels(picture: Image.Image, expected: np.ndarray) -> float:
    """The peak signal over the largest difference that rounding to 8 bits does not explain."""
    difference = np.abs(np.asarray(picture, np.float64) - expected).max()
    return 20 * float(np.log10(255 / max(difference - 0.5, 1e-12)))


@pytest.mark.filterwarnings("ignore:prompt .* has .* tokens")
@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("two red apples", {"Seed": 7}),
        (LONG, {"Seed": 2**63 - 1, "Steps": 3, "Width": 64, "Height": 32}),
        ("", {"Seed": 0}),
    ],
    ids=["typed", "long", "empty"],
)
def test_it_draws_what_python_draws(
    prompt: str, settings: dict[str, int], files: dict[str, Path], serve: Serve, context: Any, tiny_model: Path
) -> None:
    page = opened(context, serve(files))
    choose(page, prompt, **settings)
    draw(page)
    page.wait_for_selector(PICTURE)
    picture, text = saved(page), " ".join(prompt.split())
    size = {"width": settings.get("Width", 32), "height": settings.get("Height", 32)}
    steps = settings.get("Steps", 2)
    expected = drawn_by_python(tiny_model, prompt, settings["Seed"], num_inference_steps=steps, **size)
    assert decibels(picture, expected) >= 80
    bundle = json.loads(files["model/bundle.json"].read_text())
    assert {
        name: picture.info[name] for name in ("prompt", "seed", "size", "steps", "guidance", "model", "snapgen")
    } == {
        "prompt": text,
        "seed": str(settings["Seed"]),
        "size": f"{size['width']}x{size['height']}",
        "steps": str(steps),
        "guidance": str(float(bundle["sampling"]["guidance"])),
        "model": bundle["model"],
        "snapgen": bundle["snapgen"],
    }
    assert picture.info["name"].endswith(f"-{settings['Seed']}.png")
    assert page.locator("#cut").is_visible() == (prompt == LONG)


def test_guidance_is_that_of_python(
    described: Callable[..., dict[str, Path]], serve: Serve, context: Any, tiny_model: Path
) -> None:
    page = opened(context, serve(described(sampling={"steps": 3, "guidance": 2.5, "shift": 3.0})))
    choose(page, "a dog", Seed=1)
    assert page.get_by_label("Guidance").input_value() == "2.5"
    draw(page)
    page.wait_for_selector(PICTURE)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.5}
    pipeline = load_pipeline(str(tiny_model))
    assert pipeline.config.shift == 3.0
    assert decibels(saved(page), drawn_by_python(tiny_model, "a dog", 1, **settings)) >= 80


def test_pictures_appear_step_by_step_and_fill_a_gallery(files: dict[str, Path], serve: Serve, context: Any) -> None:
    page = opened(context, serve(files))
    choose(page, "a cat", Seed=5, Pictures=3, Steps=4)
    page.evaluate("""() => {
        window.seen = { canvas: 0, work: new Set(), status: [] };
        const put = CanvasRenderingContext2D.prototype.putImageData;
        CanvasRenderingContext2D.prototype.putImageData = function (...all) { seen.canvas++; put.apply(this, all); };
        const watch = (id, note) => new MutationObserver(() => note(document.getElementById(id).textContent))
            .observe(document.getElementById(id), { childList: true });
        watch("working", (text) => seen.work.add(text));
        watch("status", (text) => seen.status.push(text));
    }""")
    draw(page)
    page.wait_for_selector("#pictures li:nth-child(3)")
    page.wait_for_selector("#stop", state="hidden")
    seen = page.evaluate("({ canvas: seen.canvas, work: [...seen.work], status: seen.status })")
    assert seen["canvas"] >= 3
    assert {"Drawing picture 1 of 3, step 1 of 4", "Drawing picture 3 of 3, step 3 of 4"} <= set(seen["work"])
    assert seen["status"][-2:] == ["Drawing picture 3 of 3.", "Done: a cat, seed 7."]
    assert page.inner_text("#facts").startswith("Seed 7 · 32 × 32 px · 4 steps, guidance 4 · ")
    thumbnails = page.locator("#pictures button")
    assert thumbnails.count() == 3
    thumbnails.last.click()
    assert page.inner_text("#facts").startswith("Seed 5 ")
    assert page.locator("#pictures button[aria-current]").get_by_alt_text("a cat, seed 5").count() == 1

    choose(page, "something else", Seed="", Pictures=1, Steps=1)
    page.get_by_role("button", name="Use these settings").click()
    assert page.get_by_label("What should it show?").input_value() == "a cat"
    assert [page.get_by_label(name, exact=True).input_value() for name in ("Seed", "Steps")] == ["5", "4"]
    page.get_by_role("button", name="Remove").click()
    assert page.inner_text("#facts").startswith("Seed 6 ")
    for _ in range(2):
        page.get_by_role("button", name="Remove").click()
    assert page.locator("#gallery").is_hidden() and page.get_by_text("Your picture appears here.").is_visible()


def test_drawing_can_be_stopped_and_replaced(files: dict[str, Path], serve: Serve, context: Any) -> None:
    page = opened(context, serve(files))
    choose(page, "a cat", Steps=1000)
    draw(page)
    page.get_by_text(re.compile(r"step \d+ of 1000")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector("#stop", state="hidden")
    assert page.locator(PICTURE).count() == 0
    draw(page)
    page.get_by_text(re.compile(r"step \d+ of 1000")).wait_for()
    choose(page, "a dog", Steps=1, Seed=2)
    draw(page)
    page.wait_for_selector(PICTURE)
    assert page.inner_text("#said") == "“a dog”"
    assert page.locator("#pictures button").count() == 1
    choose(page, "a dog", Seed="many")
    draw(page)
    assert page.evaluate("document.activeElement.id") == "seed"


def test_it_works_offline_after_the_first_visit(files: dict[str, Path], app: Path, context: Any) -> None:
    server = SiteServer(("127.0.0.1", 0), files)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    page = opened(context, server)
    page.get_by_text("It works offline from now on.").wait_for()
    choose(page, "a cat", Seed=3)
    draw(page)
    page.wait_for_selector(PICTURE)
    online = saved(page)
    server.shutdown()
    server.server_close()
    page.reload()
    choose(page, "a cat", Seed=3)
    draw(page)
    page.wait_for_selector(PICTURE)
    assert saved(page).tobytes() == online.tobytes()


def test_a_static_site_works_below_a_path(files: dict[str, Path], tmp_path: Path, context: Any) -> None:
    write_site(files, tmp_path / "some" / "where")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/some/where/")
        choose(page, "a cat")
        draw(page)
        page.wait_for_selector(PICTURE)
        page.get_by_text("It works offline from now on.").wait_for()
        server.shutdown()


def test_it_draws_without_https_but_keeps_nothing(files: dict[str, Path], serve: Serve, context: Any) -> None:
    page = context.new_page()
    page.goto(serve(files).url.replace("127.0.0.1", "elsewhere.test"))
    assert not page.evaluate("isSecureContext")
    choose(page, "a cat")
    draw(page)
    page.wait_for_selector(PICTURE)
    assert page.inner_text("#offline") == ""


def test_words_it_does_not_know_are_underlined_with_others(
    described: Callable[..., dict[str, Path]], serve: Serve, context: Any
) -> None:
    words = {"nouns": ["apple", "ice cream", "cat"], "numbers": ["two"], "colors": ["red"]}
    page = opened(context, serve(described(known_words=words)))
    choose(page, "two red appels, a purple Cat")
    marks = page.locator("#mirror mark")
    assert marks.all_inner_texts() == ["appels", "a", "purple"]
    page.get_by_text("appels is not a word it knows. Did you mean").wait_for()
    page.get_by_role("button", name="apple", exact=True).first.click()
    assert page.get_by_label("What should it show?").input_value() == "two red apple, a purple Cat"
    assert marks.all_inner_texts() == ["a", "purple"]
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.get_by_text("Words it knows").click()
    page.get_by_role("button", name="ice cream").click()
    assert page.get_by_label("What should it show?").input_value() == "two red apple, a purple Cat ice cream"


def altered(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    content = bytearray(files["model/unet.onnx"].read_bytes())
    content[-1] ^= 1
    (tmp_path / "unet.onnx").write_bytes(content)
    return files | {"model/unet.onnx": tmp_path / "unet.onnx"}


def cut_off(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "unet.onnx").write_bytes(files["model/unet.onnx"].read_bytes()[:-5])
    return files | {"model/unet.onnx": tmp_path / "unet.onnx"}


def missing(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: path for name, path in files.items() if name != "model/unet.onnx"}


def no_worker(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: path for name, path in files.items() if not name.startswith("assets/worker")}


def no_description(files: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "bundle.json").write_text("<html>")
    return files | {"model/bundle.json": tmp_path / "bundle.json"}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (altered, "unet.onnx is not the file that belongs to this model: it is of other content."),
        (cut_off, "unet.onnx is not the file that belongs to this model: it is shorter."),
        (missing, "unet.onnx could not be loaded: the server answered 404."),
        (no_worker, "The part of the app that draws could not be started. Reload the page."),
        (no_description, "The model's bundle.json is damaged: it is not JSON."),
    ],
)
def test_what_is_wrong_with_a_file_is_said_and_can_be_mended(
    spoil: Callable[..., dict[str, Path]],
    words: str,
    files: dict[str, Path],
    serve: Serve,
    context: Any,
    tmp_path: Path,
) -> None:
    server = serve(spoil(files, tmp_path))
    page = opened(context, server)
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert words in alert.inner_text()
    server.files = files
    page.get_by_role("button", name="Try again").click()
    choose(page, "a cat")
    draw(page)
    page.wait_for_selector(PICTURE)
    assert alert.is_hidden()


@pytest.mark.parametrize("script", ["delete globalThis.WebAssembly", "WebAssembly.validate = () => false"])
def test_a_browser_that_is_too_old_is_refused(script: str, files: dict[str, Path], serve: Serve, context: Any) -> None:
    context.add_init_script(script)
    page = opened(context, serve(files))
    page.get_by_role("alert").wait_for()
    assert "This browser is too old to draw" in page.get_by_role("alert").inner_text()
    assert page.get_by_role("button", name="Draw", exact=True).is_disabled()


def test_without_a_graphics_processor_it_says_so_and_draws(files: dict[str, Path], serve: Serve, context: Any) -> None:
    page = opened(context, serve(files))
    choose(page, "a cat")
    page.get_by_label("Use the graphics processor").click()
    page.get_by_text("Pictures are drawn without it.").wait_for()
    assert not page.get_by_label("Use the graphics processor").is_checked()
    draw(page)
    page.wait_for_selector(PICTURE)


def test_the_faster_of_one_and_two_threads_is_kept(
    files: dict[str, Path], serve: Serve, browser: Any, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """Where the host allows threads, by two headers."""
    from snapgen.web import serve as module

    def end_headers(self: Any, end: Any = module.SiteHandler.end_headers) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        end(self)

    monkeypatch.setattr(module.SiteHandler, "end_headers", end_headers)
    context = browser.new_context()
    context.add_init_script("Object.defineProperty(navigator, 'hardwareConcurrency', { get: () => 2 })")
    server = serve(files)
    page = opened(context, server)
    page.get_by_text("It works offline from now on.").wait_for(timeout=SECONDS)
    assert page.evaluate("localStorage.getItem('snapgen-threads')") in ("1", "2")
    for threads in ("2", "1"):
        page.evaluate(f"localStorage.setItem('snapgen-threads', '{threads}')")
        page.reload()
        choose(page, "a cat", Seed=4)
        draw(page)
        page.wait_for_selector(PICTURE, timeout=SECONDS)
        assert decibels(saved(page), drawn_by_python(tiny_model, "a cat", 4)) >= 80
    context.close()


def serious(page: Any) -> list[str]:
    """What axe-core calls serious or critical."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found if rule["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(scheme: Any, described: Callable[..., dict[str, Path]], serve: Serve, browser: Any) -> None:
    """Empty, with pictures and everything open, and with an error; used by keyboard alone."""
    server = serve(described(known_words={"nouns": ["cat"], "other": ["a"]}))
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    context.set_default_timeout(SECONDS)
    page = opened(context, server)
    page.wait_for_selector("#model:not(:empty)")
    page.wait_for_selector("#loading", state="hidden")
    assert serious(page) == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type("a cat or a cut")
    page.keyboard.press("Enter")
    page.wait_for_selector(PICTURE)
    page.get_by_text("cut is not a word it knows").wait_for()
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert order == ["cat", "draw", "download", "reuse", "remove", "Settings", "Words it knows", ""]
    page.keyboard.press("Enter")  # the thumbnail
    for summary in page.locator("summary").all():
        summary.press("Enter")
    assert serious(page) == []
    server.files = {name: path for name, path in server.files.items() if name != "model/bundle.json"}
    page.reload()
    page.get_by_role("alert").wait_for()
    assert serious(page) == []
    context.close()


def test_it_fits_a_phone(files: dict[str, Path], serve: Serve, browser: Any) -> None:
    screen = {"width": 360, "height": 740}
    context = browser.new_context(viewport=screen, is_mobile=True, has_touch=True)
    context.set_default_timeout(SECONDS)
    page = opened(context, serve(files))
    choose(page, "supercalifragilisticexpialidocious " * 4)
    page.get_by_role("button", name="Draw", exact=True).tap()
    page.wait_for_selector(PICTURE)
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    for button in page.locator(
        "button:visible, main a:visible, input:visible:not([type=checkbox]), select:visible"
    ).all():
        assert button.bounding_box()["height"] >= 44
    stage, settings = (page.locator(name).bounding_box() for name in ("#stage", "#options"))
    assert stage["y"] < settings["y"]  # the picture comes before the settings
    context.close()


def test_the_app_is_small_and_names_no_model(app: Path) -> None:
    scripts = [path for path in app.rglob("*.js") if "ort-" not in path.as_posix()]
    assert sum(path.stat().st_size for path in scripts) < 150_000
    assert shutil.which("npm") is not None
    runtime = next(app.glob("assets/ort-*/ort-wasm-simd-threaded.wasm"))
    assert runtime.stat().st_size < 15_000_000
