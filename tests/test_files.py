"""Files and folders: written whole or not at all, leftovers removed, identified by hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from snapgen.files import (
    atomic_file,
    atomic_folder,
    fingerprint,
    manifest,
    naming,
    parse_json,
    read_json,
    read_prompts,
    read_whole,
    remove_leftovers,
    sha256,
    short_fingerprint,
    write_text,
)


def write_half(path: Path) -> None:
    """A write of the file `path` that fails half-way."""
    with atomic_file(path) as temporary:
        assert temporary.suffix == path.suffix  # image writers choose the format by it
        temporary.write_text("half")
        raise RuntimeError("half-way")


def fill_half(folder: Path) -> None:
    """A write of `folder` that fails half-way."""
    with atomic_folder(folder) as temporary:
        (temporary / "third").write_text("half")
        raise RuntimeError("half-way")


def test_text_gets_a_final_newline_and_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.md"
    for text in ("first", "zwölf"):
        write_text(text, path)
    assert path.read_bytes() == "zwölf\n".encode()
    assert os.listdir(path.parent) == ["page.md"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["curve.png"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for text in ("first", "second"):
        with atomic_folder(folder) as temporary:
            (temporary / text).write_text(text)
    assert os.listdir(folder) == ["second"]
    with pytest.raises(RuntimeError, match="half-way"):
        fill_half(folder)
    assert os.listdir(folder) == ["second"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_kept_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if target == folder and "replaced" not in source.name:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as temporary:
        (temporary / "new").touch()
    assert os.listdir(folder) == ["old"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_one(tmp_path: Path, there: bool) -> None:
    link, folder = tmp_path / "link", tmp_path / "disk" / "model"
    if there:
        folder.mkdir(parents=True)
    link.symlink_to(folder)
    with atomic_folder(link) as temporary:
        (temporary / "new").touch()
    assert link.is_symlink() and os.listdir(folder) == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"] and os.listdir(folder.parent) == ["model"]


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-step_00000005").mkdir()
    (tmp_path / ".tmp-1-recipe.yaml").write_text("half")
    (tmp_path / "recipe.yaml").write_text("whole")
    os.utime(tmp_path / ".tmp-1-recipe.yaml", (0, 0))
    remove_leftovers(tmp_path, 3600)
    assert sorted(os.listdir(tmp_path)) == [".tmp-1-step_00000005", "recipe.yaml"]
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_a_manifest_lists_every_file_below(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "deep").write_bytes(b"deep")
    (tmp_path / "a").write_bytes(b"")
    assert list(manifest(tmp_path).items()) == [
        ("a", hashlib.sha256(b"").hexdigest()),
        ("b/c/deep", hashlib.sha256(b"deep").hexdigest()),
    ]
    assert sha256(tmp_path / "a") == manifest(tmp_path)["a"]


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    one = fingerprint({"a": 1, "b": [2]}, b"bytes")
    assert one == fingerprint({"b": [2], "a": 1}, b"bytes")
    others = [({"a": 1, "b": [3]}, b"bytes"), ({"a": 1, "b": [2]}, b"byte"), ({"a": 1, "b": [2]},)]
    assert len({one, *(fingerprint(*parts) for parts in others)}) == 4
    assert short_fingerprint({"a": 1, "b": [2]}, b"bytes") == one[:12]
    assert fingerprint(b"x") == hashlib.sha256(b"x").hexdigest()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """The system's error does not; and a temporary name would say nothing to anybody."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError) as error, atomic_file(tmp_path / "page.png"):
        raise full
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "page.png"))
    with pytest.raises(OSError) as error, atomic_folder(tmp_path / "model") as folder, atomic_file(folder / "a" / "b"):
        raise full
    assert error.value.filename == str(tmp_path / "model" / "a" / "b")
    with pytest.raises(FileNotFoundError) as missing, atomic_folder(tmp_path / "model") as folder:
        (folder / "absent").read_text()
    assert missing.value.filename == str(tmp_path / "model" / "absent")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_names_another_file_stays_as_it_is(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "recipe.yaml"), OSError("a picture is damaged")):
        with pytest.raises(OSError) as raised, naming(tmp_path / "out.png"):
            raise error
        assert raised.value is error


def test_only_a_line_break_ends_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes('\ufeffa cat\u2028asleep\r\n \r\x85\na\x0bdog\r""\n'.encode())
    assert read_prompts(path) == ["a cat\u2028asleep", "a\x0bdog", ""]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_prompts_of_another_encoding_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("zwei Äpfel\n".encode(encoding))
    with pytest.raises(ValueError, match="prompts.txt is not a UTF-8 text file: one prompt per line is expected"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is damaged: it is nested too deep"),
        ('{"a":' * 100_000, "is damaged: it is nested too deep"),
        ("{", "is damaged: Expecting property name"),
        ("[]", "is damaged: it holds list, a JSON object is expected"),
        ('"text"', "is damaged: it holds str, a JSON object is expected"),
        ('{"a": ' + "9" * 5000 + "}", "is damaged: Exceeds the limit"),
        ("\xff", "is damaged: "),
        ("", "is damaged: "),
    ],
)
def test_damaged_json_is_one_line_that_names_the_file(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"a": [1, null, "zwölf"]}', encoding="utf-8")
    assert read_json(tmp_path / "facts.json") == {"a": [1, None, "zwölf"]}
    assert parse_json(b"[1]") == [1]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_whole(tmp_path / "file", 100) == b"x" * 100
    with pytest.raises(ValueError, match=r"file is longer than .* MiB, the most that is read of such a file"):
        read_whole(tmp_path / "file", 99)
    with pytest.raises(ValueError, match="/dev/zero is longer than 1 MiB"):
        read_whole(Path("/dev/zero"), 2**20)
    os.mkfifo(tmp_path / "pipe")
    assert read_whole(tmp_path / "pipe", 100) == b""  # nothing writes to it


def test_what_a_shell_pipes_in_is_read_to_its_end() -> None:
    """As for `--prompts <(...)`: the file is a pipe, and the writer may be slow."""
    reader, writer = os.pipe()

    def write() -> None:
        for line in (b"a cat\n", b"two dogs\n"):
            time.sleep(0.1)
            os.write(writer, line)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_prompts(Path(f"/dev/fd/{reader}")) == ["a cat", "two dogs"]
    thread.join()
    os.close(reader)


def test_endless_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="/dev/zero is longer than 64 MiB"):
        read_prompts(Path("/dev/zero"))
