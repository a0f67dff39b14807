from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hub_fixtures import encode, png_of_size
from PIL import Image

from lit_depth.data.images import load_image

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 60), (30, 30, 200)


def corners() -> Image.Image:
    """6 x 4 pixels: red in the upper left corner, green in the upper right, blue elsewhere."""
    image = Image.new("RGB", (6, 4), BLUE)
    image.putpixel((0, 0), RED)
    image.putpixel((5, 0), GREEN)
    return image


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


@pytest.mark.parametrize("form", ["image", "stored", "bytes", "path", "stored path"])
def test_every_form_of_a_stored_image_is_read(tmp_path, form):
    content = encode(corners())
    path = tmp_path / "corners.png"
    path.write_bytes(content)
    value = {
        "image": Image.open(io.BytesIO(content)),
        "stored": {"bytes": content, "path": "elsewhere.png"},
        "bytes": content,
        "path": str(path),
        "stored path": {"bytes": None, "path": str(path)},
    }[form]
    image = load_image(value)
    assert image.mode == "RGB" and image.tobytes() == corners().tobytes()


# where the red and the green corner of the stored pixels are to be seen
UPRIGHT = {
    1: ((0, 0), (5, 0)),
    2: ((5, 0), (0, 0)),
    3: ((5, 3), (0, 3)),
    4: ((0, 3), (5, 3)),
    5: ((0, 0), (0, 5)),
    6: ((3, 0), (3, 5)),
    7: ((3, 5), (3, 0)),
    8: ((0, 5), (0, 0)),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(orientation, processor):
    image = load_image(encode(corners(), exif=exif(orientation)))
    red, green = UPRIGHT[orientation]
    assert image.size == ((6, 4) if orientation < 5 else (4, 6))
    assert image.getpixel(red) == RED and image.getpixel(green) == GREEN
    assert image.getexif().get(0x0112, 1) == 1
    # the processor looks for an orientation too
    from lit_depth.models.molmo.image_processing_molmo import rgb_pixels

    assert np.array_equal(rgb_pixels(image).permute(1, 2, 0).numpy(), np.array(image))


def test_damaged_exif_data_does_not_matter():
    broken = b"Exif\x00\x00MM\x00*" + b"\xff" * 20
    assert load_image(encode(corners(), "jpeg", exif=broken)).size == (6, 4)


def test_the_callers_image_is_not_changed():
    image = Image.open(io.BytesIO(encode(corners(), exif=exif(6))))
    load_image(image)
    assert image.size == (6, 4) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), (77, 77, 77)),
        (Image.new("RGB", (2, 2), RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (Image.new("RGBA", (2, 2), (*RED, 255)), RED),
        (Image.new("RGBA", (2, 2), (*RED, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (2, 2), (100, 0)), (255, 255, 255)),
        (Image.new("LA", (2, 2), (100, 255)), (100, 100, 100)),
        (Image.new("PA", (2, 2)), (255, 255, 255)),
        (Image.new("RGBa", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("La", (2, 2), (0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("YCbCr", (2, 2), (128, 128, 128)), (128, 128, 128)),
        (Image.new("HSV", (2, 2), (0, 0, 90)), (90, 90, 90)),
        (Image.fromarray(np.full((2, 2), 0xABCD, np.uint16)), (171, 171, 171)),
        (Image.fromarray(np.full((2, 2), 200, np.uint16)), (1, 1, 1)),
        (Image.fromarray(np.full((2, 2), 65535, np.int32)), (255, 255, 255)),
        (Image.fromarray(np.full((2, 2), 90, np.int32)), (90, 90, 90)),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 64.0, np.float32)), (64, 64, 64)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image, expected):
    image = load_image(image)
    assert image.mode == "RGB" and image.getpixel((1, 1)) == expected


def test_transparency_without_alpha_channel_shows_white(tmp_path):
    palette = Image.new("RGB", (2, 2), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert load_image(encode(palette, transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encode(Image.new("RGB", (2, 2), RED), transparency=RED)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encode(Image.new("L", (2, 2), 9), transparency=9)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encode(palette, "gif", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_sixteen_bit_files_are_scaled(format):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, 0)
    values = np.array(load_image(encode(Image.fromarray(ramp), format)))
    assert np.array_equal(values[0, :, 0], np.arange(256))


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_common_formats_are_read(format):
    image = load_image(encode(Image.new("RGB", (40, 30), (96, 96, 96)), format))
    assert image.size == (40, 30) and abs(image.getpixel((20, 15))[0] - 96) <= 2


def test_a_cmyk_jpeg_has_its_colors():
    image = load_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpeg"))
    assert np.allclose(image.getpixel((8, 8)), (255, 0, 0), atol=6)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN)]
    image = load_image(encode(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3), (3, 20_000), (20_000, 5_000)])
def test_tiny_and_very_large_images_work_without_a_warning(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encode(Image.new("1", size), "png")).size == size


def test_a_tiny_and_a_large_image_pass_the_processor(processor):
    for size in ((1, 1), (20_000, 7)):
        batch = processor(images=[load_image(encode(Image.new("RGB", size)))], text=["vqa2: What is it?"])
        assert batch["images"].isfinite().all()


BOMB = png_of_size(20_000, 20_000)
REFUSED = {
    "nothing": (None, "the row has no image"),
    "nothing stored": ({"bytes": None, "path": None}, "the row has no image"),
    "no bytes": (b"", "the image is empty: 0 bytes"),
    "text": (b"not an image at all", "cannot be decoded: unknown or unsupported format"),
    "cut short": (encode(Image.effect_noise((64, 64), 50))[:1500], "cannot be decoded: OSError"),
    "cut short jpeg": (encode(Image.effect_noise((64, 64), 50), "jpeg")[:400], "cannot be decoded: OSError"),
    "header only": (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    "damaged chunk": (encode(corners())[:40] + b"\0" * 30, "cannot be decoded"),
    "bomb": (BOMB, r"refused: Image size \(400000000 pixels\) exceeds limit"),
    "no such file": ("/nowhere/image.png", "'/nowhere/image.png' does not exist"),
    "a device": ("/dev/zero", "'/dev/zero' does not exist"),
    "a number": (7, "got int"),
    "no pixels": (Image.new("RGB", (0, 3)), "no pixels: 0 x 3"),
    "not a number": (Image.fromarray(np.full((2, 2), np.nan, np.float32)), "grey values from nan"),
    "negative": (Image.fromarray(np.full((2, 2), -1, np.int32)), "grey values from -1 to -1"),
    "too wide": (Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "grey values from"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "unknown or unsupported format"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_the_same_reason_each_time(name):
    value, reason = REFUSED[name]
    messages = []
    for _ in range(2):
        with pytest.raises(ValueError, match=reason) as caught:
            load_image(value)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "0x" not in messages[0]
