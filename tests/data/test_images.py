from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from lit_depth.data import images
from lit_depth.data.images import ImageFolder, load_image
from tests.helpers.hub_fixtures import encode, png_of_size

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


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (1, 1)),
        ((20_000, 3), (20_000, 3)),
        ((3, 20_000), (3, 20_000)),
        ((5_792, 5_793), (5_792, 5_793)),  # just within the limit
        ((5_793, 5_793), (2_897, 2_897)),
        ((20_000, 5_000), (10_000, 2_500)),
    ],
)
def test_tiny_and_very_large_images_work_without_a_warning(size, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(encode(Image.new("1", size), "png")).size == expected


def noise(mode: str, width: int = 61, height: int = 43) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 4)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode in ("I", "F"):
        return Image.fromarray(values[..., 0].astype(np.int32 if mode == "I" else np.float32))
    if mode == "P":
        return Image.fromarray(values[..., :3], "RGB").quantize(64)
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_huge_image_is_the_mean_of_its_pixels(monkeypatch, mode, orientation):
    """Reduced in strips, it is what the whole image in RGB gives when it is reduced, in every mode."""
    image = noise(mode)
    stored = load_image(image)
    image.getexif()[0x0112] = orientation
    monkeypatch.setattr(images, "MAX_PIXELS", 61 * 43 // 8)  # by three: 21 x 15
    monkeypatch.setattr(images, "_STRIP_PIXELS", 500)
    small = load_image(image)
    assert small.mode == "RGB" and small.size == ((21, 15) if orientation == 1 else (15, 21))
    # orientation 6 shows an image turned clockwise
    back = small if orientation == 1 else small.transpose(Image.Transpose.ROTATE_90)
    assert back.tobytes() == stored.reduce(3).tobytes()
    means = np.asarray(stored, dtype=float)[:42, :60].reshape(14, 3, 20, 3, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(back, dtype=float)[:14, :20] - means).max() < 1  # Pillow rounds 5/9 down


def test_a_huge_jpeg_is_decoded_small(monkeypatch):
    content = encode(noise("RGB", 640, 480), "jpeg")
    monkeypatch.setattr(images, "MAX_PIXELS", 640 * 480 // 16)
    opened = images._open(content, None)
    assert opened.size == (160, 120)
    assert load_image(content).size == (160, 120)


@pytest.mark.slow
def test_a_huge_image_takes_little_memory(tmp_path):
    """One of 169 million pixels in 46 kB took 3.5 GB by the time that it was crops."""
    path = tmp_path / "huge.png"
    Image.new("1", (13_000, 13_000), 1).save(path)
    code = (
        "import resource, sys\n"
        "from lit_depth.data.images import load_image\n"
        "from lit_depth.models.molmo import MolmoImageProcessor\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "MolmoImageProcessor()([load_image(sys.argv[1])])\n"
        "print(peak() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert float(run.stdout.split()[-1]) < 900  # MiB


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


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>', "SVG"),
        (b"%PDF-1.4", "PDF"),
    ],
)
def test_formats_that_people_have_are_named_with_the_file_and_a_way_out(content, kind, tmp_path):
    (tmp_path / "a.bin").write_bytes(content)
    told = f"cannot be decoded: {kind} is not read; save it as JPEG, PNG or WebP"
    with pytest.raises(ValueError, match=f"the image 'a.bin' {told}"):
        load_image("a.bin", ImageFolder(str(tmp_path), (str(tmp_path),)))
    with pytest.raises(ValueError, match=f"the image {told}"):
        load_image(content)


@pytest.mark.parametrize(("typed", "meant"), [("img_1.jpg", "IMG_1.JPG"), ("IMG_1", "IMG_1.JPG"), ("IMG_2.JPG", None)])
def test_a_name_that_is_not_quite_a_file_s_says_which_was_meant(typed, meant, tmp_path):
    corners().save(tmp_path / "IMG_1.JPG")
    hint = "$" if meant is None else f"; did you mean '{meant}'"
    with pytest.raises(ValueError, match=f"'{typed}' does not exist{hint}"):
        load_image(typed, ImageFolder(str(tmp_path), (str(tmp_path),)))
