"""Prompts are read as they were written, and what is none is named."""

from __future__ import annotations

import pytest
from PIL import Image

from lit_depth.studies.tokens.prompts import fingerprint, read_prompts, with_image
from lit_depth.studies.tokens.settings import read_text


def test_a_file_is_read_to_the_last_line_feed(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffa\r\nb\n".encode())
    assert read_text("prompt_file", str(path)) == "a\r\nb\n"
    path.write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="prompt_file: expected UTF-8 text, .* has the byte 0xff at 1"):
        read_text("prompt_file", str(path))
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_text("prompt_file", str(tmp_path / "absent"))


def test_a_list_of_prompts_has_names_and_images_beside_it(tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    (tmp_path / "p.yaml").write_text("- What?\n- {prompt: 'null', image: a.png, name: second}\n")
    first, second = read_prompts(str(tmp_path / "p.yaml"))
    assert (first.name, first.text, first.image) == ("prompt 0", "What?", None)
    assert (second.name, second.text) == ("second", "null") and second.image.size == (3, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a list of prompts"),
        ("a: b", "expected a list of prompts"),
        ("- 3", "expected text, or"),
        ("- {image: a.png}", "expected text, or"),
        ("- {prompt: a, colour: b}", "expected text, or"),
        ("- {prompt: a, name: x}\n- {prompt: b, name: x}", "expected distinct names"),
        ("- [", "is no YAML"),
        ("- {prompt: a, image: absent.png}", "image .*absent.png"),
    ],
)
def test_what_is_no_list_of_prompts_is_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / "p.yaml"))


def test_a_picture_is_known_by_its_pixels(tmp_path):
    one, other = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (3, 2), "blue")
    assert fingerprint(None) is None and fingerprint(one).startswith("3 x 2, ")
    assert fingerprint(one) == fingerprint(one.copy()) != fingerprint(other)
    assert with_image("name", "text", None).image_id is None


def test_a_file_of_settings_gives_its_prompts(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    path = tmp_path / "prompts_config.yaml"
    path.write_text(
        "model: {path: org/model}\ndevice: cpu\nnum_tokens: 3\nmax_image_resolution: 10\n"
        "prompts:\n- {name: one, prompt: What?, image: a.png, enabled: true}\n- {prompt: No, enabled: false}\n"
    )
    (prompt,) = read_prompts(str(path))
    assert (prompt.name, prompt.text, prompt.image.size) == ("one", "What?", (10, 5))
