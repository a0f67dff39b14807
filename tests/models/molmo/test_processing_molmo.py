"""Laws of Molmo's preprocessing, and equality with the released processor on recorded images and prompts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast, pipeline

from lit_depth.models.loading import load_bundled
from lit_depth.models.molmo.configuration_molmo import MolmoConfig
from lit_depth.models.molmo.image_processing_molmo import MolmoImageProcessor, rgb_pixels
from lit_depth.models.molmo.processing_molmo import MolmoProcessor
from lit_depth.models.molmo.tiling_molmo import IMAGE_TOKENS

TINY = {
    "base_image_input_size": [56, 56],
    "image_patch_size": 7,
    "overlap_margins": [2, 2],
    "max_crops": 4,
    "image_token_length_h": 4,
    "image_token_length_w": 4,
}
IMAGES = [
    "rgb_30x40",
    "rgb_336x336",
    "rgb_1000x300",
    "rgb_300x1000",
    "rgb_1x1",
    "grey_257x190",
    "rgba_400x260",
    "palette_180x220",
    "exif8_200x320",
    "exif8_200x320__exif_ignored",
    "exif6_jpeg_184x123",
    "exif6_jpeg_184x123__exif_ignored",
    "strip_700x5",
    "rgb_1100x830",
    "round_524x140",
    "margin_112x300",
]


def make_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with Molmo's image tokens."""
    words = ["User", ":", "Assistant", "what", "is", "this", "?", "<eos>", "<pad>", *IMAGE_TOKENS]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    defaults = {"eos_token": "<eos>", "pad_token": "<pad>", "additional_special_tokens": list(IMAGE_TOKENS)}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{**defaults, **special})


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def tiny() -> MolmoProcessor:
    return MolmoProcessor(MolmoImageProcessor(**TINY), make_tokenizer())


@pytest.fixture(scope="module")
def released(golden_dir: Path) -> MolmoProcessor:
    return MolmoProcessor.from_pretrained(golden_dir / "molmoe_tokenizer")


@pytest.fixture(scope="module")
def index(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "preprocessing" / "index.json").read_text())


class TestAgainstRelease:
    @pytest.mark.parametrize("geometry", ["molmoe", "tiny"])
    @pytest.mark.parametrize("case", IMAGES)
    def test_recorded_images(
        self, golden_dir: Path, index: dict, released: MolmoProcessor, geometry: str, case: str
    ) -> None:
        folder = golden_dir / "preprocessing"
        entry = next(image for image in index["images"] if image["case"] == case)
        result = entry["results"][geometry]
        if "error" in result:
            pytest.skip(f"the reference fails here ({result['error']}); see test_strips_and_dots")
        settings_ = {k: v for k, v in index["geometry"][geometry].items() if k != "pooling"}
        processor = MolmoProcessor(MolmoImageProcessor(**settings_), released.tokenizer)
        expected = load_file(folder / result["file"])
        apply_exif = entry["exif"] != "ignored"

        image: Image.Image | np.ndarray = Image.open(folder / entry["file"])
        decoded = rgb_pixels(image, apply_exif).permute(1, 2, 0).numpy()
        assert list(decoded.shape) == entry["decoded_shape"]
        if "decoded_file" not in entry:
            assert hashlib.sha256(decoded.tobytes()).hexdigest() == entry["decoded_sha256"]
        else:  # JPEG decoders differ: go on from the recorded pixels
            recorded = np.array(Image.open(folder / entry["decoded_file"]).convert("RGB"))
            if recorded.shape == decoded.shape:
                image = recorded
        got = processor(images=image, text=index["prompt_for_images"], apply_exif=apply_exif)

        images = got["images"][0]
        assert list(images.shape) == expected["images_shape"].tolist()
        assert processor.image_processor.tiling(*decoded.shape[:2]) == tuple(expected["tiling"].tolist())
        for name in ("input_ids", "image_input_idx", "image_masks"):
            assert torch.equal(got[name][0], expected[name]), name
        crop, patch = expected["sample_index"].T
        torch.testing.assert_close(images[crop, patch], expected["sample_patches"], atol=2e-6, rtol=0)
        torch.testing.assert_close(images.mean(-1), expected["patch_mean"], atol=2e-6, rtol=0)
        torch.testing.assert_close(images.std(-1, correction=0), expected["patch_std"], atol=2e-6, rtol=0)
        assert images.double().sum().item() == pytest.approx(result["pixel_sum"], rel=1e-6, abs=0.05)
        assert images.double().abs().sum().item() == pytest.approx(result["pixel_abs_sum"], rel=1e-6)

    def test_every_recorded_image_is_listed(self, index: dict) -> None:
        assert sorted(image["case"] for image in index["images"]) == sorted(IMAGES)

    def test_prompts(self, golden_dir: Path, released: MolmoProcessor) -> None:
        tokens = json.loads((golden_dir / "preprocessing" / "tokens.json").read_text())
        assert released.bos_token_id == tokens["tokenizer"]["bos_used"]
        assert released.pad_token_id == tokens["tokenizer"]["pad_token_id"]
        for prompt in tokens["prompts"]:
            batch = released(text=prompt["prompt"])
            assert batch["input_ids"][0].tolist() == prompt["input_ids_text_only"]
            assert set(batch) == {"input_ids", "attention_mask"}
            literal = released(text=prompt["formatted"], apply_prompt_format=False)
            assert torch.equal(literal["input_ids"], batch["input_ids"])
            assert released.decode(prompt["token_ids"]) == prompt["decoded"]
        assert released.batch_decode([prompt["token_ids"] for prompt in tokens["prompts"]]) == [
            prompt["decoded"] for prompt in tokens["prompts"]
        ]

    @pytest.mark.parametrize("model", ["molmoe_tiny", "molmo_dense_tiny"])
    @pytest.mark.parametrize("case", ["image", "batch_right", "batch_left"])
    def test_model_inputs(self, golden_dir: Path, model: str, case: str) -> None:
        meta = json.loads((golden_dir / model / "cases.json").read_text())
        expected, info = load_file(golden_dir / model / "cases.safetensors"), meta["cases"][case]
        pooled = meta["geometry"]["base_image_input_size"][0] // meta["geometry"]["image_patch_size"] // 2
        processor = MolmoImageProcessor(**meta["geometry"], image_token_length_h=pooled, image_token_length_w=pooled)
        files = [name and Image.open(golden_dir / model / name) for name in info["image_files"]]
        got = processor(files)
        assert torch.equal(got["images"], expected[f"{case}.images"])
        assert torch.equal(got["image_masks"], expected[f"{case}.image_masks"])
        # Rows with an image are never padded on the left here, so only BOS shifts their positions.
        positions = got["image_input_idx"]
        assert torch.equal(positions + (positions >= 0), expected[f"{case}.image_input_idx"])

        ids, special = expected[f"{case}.input_ids"], meta["special_token_ids"]
        of_kind = torch.tensor([special["im_start"], special["im_end"], special["im_patch"], special["im_col"]])
        for row, image in enumerate(files):
            if image is not None:
                tokens = of_kind[processor.layout(image.height, image.width).token_kinds]
                assert torch.equal(ids[row, 1 : 1 + len(tokens)], tokens)


class TestFiles:
    @pytest.fixture
    def folder(self, golden_dir: Path, tmp_path: Path) -> Path:
        """The released layout with remote code that leaves a mark where it is run."""
        for file in (golden_dir / "molmoe_tokenizer").iterdir():
            shutil.copyfile(file, tmp_path / file.name)
        (tmp_path / "model_config_full_size.json").rename(tmp_path / "config.json")
        for name in ("preprocessing_molmo", "multimodal_preprocessor", "config_molmoe", "modeling_molmoe"):
            (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'remote_code_ran')!r}, 'w').close()")
        return tmp_path

    @pytest.fixture
    def registered(self) -> None:
        backends = {"pil": MolmoImageProcessor, "torchvision": MolmoImageProcessor}
        AutoImageProcessor.register(MolmoConfig, image_processor_classes=backends, exist_ok=True)
        AutoProcessor.register(MolmoConfig, MolmoProcessor, exist_ok=True)

    @pytest.mark.parametrize("trust_remote_code", [None, True])
    def test_released_folder(self, folder: Path, registered: None, trust_remote_code: bool | None) -> None:
        loaded = [
            loader.from_pretrained(folder, trust_remote_code=trust_remote_code)
            for loader in (MolmoProcessor, AutoProcessor)
        ]
        image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        assert not (folder / "remote_code_ran").exists()
        assert all(type(processor) is MolmoProcessor for processor in loaded)
        assert type(image_processor) is MolmoImageProcessor
        assert image_processor.to_dict() == loaded[0].image_processor.to_dict() == loaded[1].image_processor.to_dict()

    @pytest.mark.parametrize("loader", [MolmoProcessor, AutoProcessor])
    def test_round_trip(self, tiny: MolmoProcessor, registered: None, tmp_path: Path, loader: type) -> None:
        tiny.save_pretrained(tmp_path)
        fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert TINY.items() <= fields.items()
        assert {"image_mean", "image_std", "image_padding_mask", "do_normalize", "image_processor_type"} <= set(fields)
        assert "auto_map" not in fields
        again = loader.from_pretrained(tmp_path)
        assert again.image_processor.to_dict() == tiny.image_processor.to_dict()
        image = random_image(90, 130)
        before, after = tiny(images=[image], text=["what ?"]), again(images=[image], text=["what ?"])
        assert all(torch.equal(before[name], after[name]) for name in before)
        (tmp_path / "processor_config.json").unlink()
        assert MolmoImageProcessor.from_pretrained(tmp_path).to_dict() == tiny.image_processor.to_dict()

    def test_overrides(self, tiny: MolmoProcessor, tmp_path: Path) -> None:
        tiny.save_pretrained(tmp_path)
        assert MolmoProcessor.from_pretrained(tmp_path, max_crops=2).image_processor.max_crops == 2
        with pytest.raises(ValueError, match="max_crops must be at least 1, got 0"):
            MolmoProcessor.from_pretrained(tmp_path, max_crops=0)


class TestImages:
    @settings(max_examples=40, deadline=None)
    @given(height=st.integers(1, 700), width=st.integers(1, 700))
    def test_each_patch_token_is_fed_once(self, tiny: MolmoProcessor, height: int, width: int) -> None:
        batch = tiny(images=[random_image(width, height), None], text=["what", "this is what this is ? " * 30])
        positions, ids = batch["image_input_idx"][0], batch["input_ids"][0]
        used = positions[positions >= 0].sort().values
        patch_token = tiny.tokenizer.convert_tokens_to_ids("<im_patch>")
        assert torch.equal(used, (ids == patch_token).nonzero().flatten())
        rows, cols = tiny.image_processor.tiling(height, width)
        assert positions.shape == (1 + rows * cols, 16) and rows * cols <= 4
        num_text = 1 + len(tiny.tokenizer(" User: what Assistant:")["input_ids"])
        assert batch["attention_mask"][0].sum() == num_text + tiny.image_processor.num_image_tokens(height, width)
        masks = batch["image_masks"][0]
        assert (masks[-1] == -1).all() and ((masks[:-1] >= 0) & (masks[:-1] <= 1)).all() and masks[:-1].max() > 0
        assert batch["images"].isfinite().all()


class TestBatches:
    @staticmethod
    def strip(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
        """One row without padding and missing crops, positions counted from its own start."""
        real = batch["attention_mask"][row].bool()
        result = {"input_ids": batch["input_ids"][row, real]}
        if "images" in batch:
            crops = (batch["image_input_idx"][row] != -1).any(-1)
            result |= {name: batch[name][row, crops] for name in ("images", "image_masks")}
            index, start = batch["image_input_idx"][row, crops], int(real.nonzero()[0])
            result["image_input_idx"] = torch.where(index >= 0, index - start, index)
        return result

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_batch_equals_single_rows(self, tiny: MolmoProcessor, side: str) -> None:
        images = [random_image(90, 130), None, random_image(40, 40, seed=1), random_image(600, 60, seed=2)]
        texts = ["what is this ?", "what", "this " * 9, "is this what this is ?"]
        batch = tiny(images=images, text=texts, padding_side=side)
        padded = batch["attention_mask"] == 0
        assert (batch["input_ids"][padded] == tiny.tokenizer.pad_token_id).all()
        order = batch["attention_mask"] if side == "left" else batch["attention_mask"].flip(1)
        assert (order.diff(dim=1) >= 0).all() and order[:, -1].all()
        for row, (image, text) in enumerate(zip(images, texts)):
            single = tiny(images=image, text=text, padding_side=side)
            assert single["attention_mask"].all()
            expected, got = self.strip(single, 0), self.strip(batch, row)
            for name in expected:
                assert torch.equal(got[name], expected[name]), name
            missing = (batch["image_input_idx"][row] == -1).all(-1)
            assert missing.all() == (image is None)
            assert (batch["images"][row, missing] == -1).all() and (batch["image_masks"][row, missing] == -1).all()

    def test_types_and_keys(self, tiny: MolmoProcessor) -> None:
        batch = tiny(images=[random_image(30, 30)], text=["what"])
        assert set(batch) == set(tiny.model_input_names)
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            "input_ids": torch.long,
            "attention_mask": torch.long,
            "images": torch.float32,
            "image_masks": torch.float32,
            "image_input_idx": torch.long,
        }
        assert set(tiny(images=[None, None], text=["what", "this"])) == {"input_ids", "attention_mask"}

    def test_order_of_a_row(self, tiny: MolmoProcessor) -> None:
        text = tiny.tokenizer.decode(tiny(images=random_image(30, 30), text="what is this ?")["input_ids"][0])
        image = f"<im_start>{('<im_patch>' * 4 + '<im_col>') * 4}<im_end>" * 2
        assert text.replace(" ", "") == f"<eos>{image}User:whatisthis?Assistant:"

    @pytest.mark.parametrize(("bos", "pad"), [("<pad>", None), (None, None), ("is", "this")])
    def test_special_tokens(self, bos: str | None, pad: str | None) -> None:
        processor = MolmoProcessor(MolmoImageProcessor(**TINY), make_tokenizer(bos_token=bos, pad_token=pad))
        ids = processor(text=["what", "what what"])["input_ids"]
        expected_bos = processor.tokenizer.convert_tokens_to_ids(bos or "<eos>")
        assert ids[1, 0] == ids[0, 1] == expected_bos
        assert ids[0, 0] == (expected_bos if pad is None else processor.tokenizer.convert_tokens_to_ids(pad))

    def test_max_length_never_cuts(self, tiny: MolmoProcessor) -> None:
        images, texts = [None, random_image(90, 130)], ["what", "is this ?"]
        length = tiny(images=images, text=texts)["input_ids"].shape[1]
        assert tiny(images=images, text=texts, max_length=length)["input_ids"].shape[1] == length
        with pytest.raises(ValueError, match=f"max_length={length - 1} tokens, got {length} in row 1"):
            tiny(images=images, text=texts, max_length=length - 1)

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"text": []},
            {"images": [None], "text": ["what", "is"]},
            {"images": [], "text": "what"},
            {"text": "what", "padding_side": "both"},
            {"text": "what", "return_tensors": "tf"},
            {"text": ["what", "what is"], "padding": False},
            {"text": "what", "max_length": 6, "truncation": True, "images": random_image(30, 30)},
            {"text": "what", "images": random_image(30, 30), "do_resize": False},
            {"text": ["what", ["is"]]},
            {"text": "what", "videos": [1]},
        ],
    )
    def test_user_mistakes(self, tiny: MolmoProcessor, arguments: dict) -> None:
        with pytest.raises(ValueError, match="expected .* got"):
            tiny(**arguments)

    def test_tokenizer_is_checked(self) -> None:
        lacking = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"?": 0}, unk_token="?")))
        with pytest.raises(ValueError, match="without .*<im_start>"):
            MolmoProcessor(MolmoImageProcessor(), lacking)
        with pytest.raises(ValueError, match="neither"):
            MolmoProcessor(MolmoImageProcessor(), make_tokenizer(eos_token=None))


class TestCalls:
    """What a transformers processor takes besides, each against rows laid out by hand."""

    TEXTS = ["what", "is this what"]

    @pytest.fixture
    def rows(self, tiny: MolmoProcessor) -> list[list[int]]:
        return [tiny(text=text)["input_ids"][0].tolist() for text in self.TEXTS]

    def test_padding(self, tiny: MolmoProcessor, rows: list[list[int]]) -> None:
        pad, (short, long) = tiny.pad_token_id, rows
        gap = len(long) - len(short)
        for padding, extra in ((True, 0), ("longest", 0), ("max_length", 3)):
            batch = tiny(text=self.TEXTS, padding=padding, max_length=len(long) + 3)
            assert batch["input_ids"].tolist() == [[pad] * (gap + extra) + short, [pad] * extra + long]
            assert batch["attention_mask"].sum(1).tolist() == [len(short), len(long)]
        right = tiny(text=self.TEXTS, padding_side="right", pad_to_multiple_of=8)["input_ids"]
        assert right.shape[1] % 8 == 0 and right[0].tolist() == short + [pad] * (right.shape[1] - len(short))
        assert tiny(text=self.TEXTS, padding=False, return_tensors=None)["input_ids"] == rows
        assert "attention_mask" not in tiny(text="what", return_attention_mask=False)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_truncation_cuts_text_alone(self, tiny: MolmoProcessor, side: str) -> None:
        tokenizer = make_tokenizer()
        tokenizer.truncation_side = side
        processor = MolmoProcessor(tiny.image_processor, tokenizer)
        image, text = random_image(30, 30), "what is this ?"
        whole = processor(images=image, text=text)
        head = 1 + processor.image_processor.num_image_tokens(30, 30)
        expected = torch.cat([whole["input_ids"][:, :head], whole["input_ids"][:, head:][:, -2:]], 1)
        if side == "right":
            expected = whole["input_ids"][:, : head + 2]
        cut = processor(images=image, text=text, max_length=head + 2, truncation=True)
        assert torch.equal(cut["input_ids"], expected) and cut["attention_mask"].all()
        assert torch.equal(cut["image_input_idx"], whole["image_input_idx"])

    def test_kinds_of_arrays_hold_the_same(self, tiny: MolmoProcessor) -> None:
        asked = {"images": [random_image(30, 30), None], "text": self.TEXTS}
        tensors = tiny(**asked)
        for name, array in tiny(**asked, return_tensors="np").items():
            assert isinstance(array, np.ndarray) and np.array_equal(array, tensors[name].numpy()), name
            assert array.dtype == tensors[name].numpy().dtype
        for name, values in tiny(**asked, return_tensors=None).items():
            assert isinstance(values, list) and np.array_equal(np.array(values), tensors[name].numpy()), name

    def test_without_bos_everything_moves_by_one(self, tiny: MolmoProcessor) -> None:
        asked = {"images": random_image(90, 130), "text": "what"}
        whole, without = tiny(**asked), tiny(**asked, add_special_tokens=False)
        assert torch.equal(without["input_ids"], whole["input_ids"][:, 1:])
        index = whole["image_input_idx"]
        assert torch.equal(without["image_input_idx"], index - (index >= 0).long())

    def test_several_images_follow_one_another(self, tiny: MolmoProcessor) -> None:
        images = [random_image(90, 130), random_image(40, 40, seed=1), random_image(600, 60, seed=2)]
        singles = [tiny(images=image, text="") for image in images]
        tokens = [single["input_ids"][0, 1 : 1 + tiny.image_processor.num_image_tokens(*image.size[::-1])].tolist()
                  for single, image in zip(singles, images)]  # fmt: skip
        for asked in (images, [images]):
            batch = tiny(images=asked, text="what")
            text = tiny(text="what")["input_ids"][0].tolist()
            assert batch["input_ids"][0].tolist() == [text[0], *tokens[0], *tokens[1], *tokens[2], *text[1:]]
            for name in ("images", "image_masks"):
                assert torch.equal(batch[name], torch.cat([single[name] for single in singles], 1)), name
            crop = before = 0
            for single, mine in zip(singles, tokens):
                index = single["image_input_idx"][0]
                moved = torch.where(index >= 0, index + before, index)
                assert torch.equal(batch["image_input_idx"][0, crop : crop + len(index)], moved)
                crop, before = crop + len(index), before + len(mine)
            patch = tiny.tokenizer.convert_tokens_to_ids("<im_patch>")
            used = batch["image_input_idx"][0].flatten()
            assert torch.equal(used[used >= 0].sort().values, (batch["input_ids"][0] == patch).nonzero().flatten())

    def test_rows_of_a_batch_have_any_number_of_images(self, tiny: MolmoProcessor) -> None:
        first, second = random_image(90, 130), random_image(40, 40, seed=1)
        rows = [None, [first, second], second]
        batch = tiny(images=rows, text=["what", "is this", "this"])
        for row, (images, text) in enumerate(zip(rows, ["what", "is this", "this"])):
            alone = tiny(images=None if images is None else [images], text=[text])
            expected, got = TestBatches.strip(alone, 0), TestBatches.strip(batch, row)
            for name in expected:
                assert torch.equal(got[name], expected[name]), (row, name)

    def test_settings_for_one_call(self, tiny: MolmoProcessor) -> None:
        other = MolmoProcessor(MolmoImageProcessor(**{**TINY, "max_crops": 1, "do_normalize": False}), tiny.tokenizer)
        asked = {"images": random_image(300, 130), "text": "what"}
        before = tiny(**asked)
        for call in (
            {"max_crops": 1, "do_normalize": False},
            {"images_kwargs": {"max_crops": 1, "do_normalize": False}},
        ):
            changed, expected = tiny(**asked, **call), other(**asked)
            assert all(torch.equal(changed[name], expected[name]) for name in expected)
        assert all(torch.equal(value, tiny(**asked)[name]) for name, value in before.items())

    def test_a_path_is_read(self, tiny: MolmoProcessor, tmp_path: Path) -> None:
        image = random_image(60, 40)
        image.save(tmp_path / "picture.png")
        by_path = tiny(images=str(tmp_path / "picture.png"), text="what")
        assert torch.equal(by_path["images"], tiny(images=image, text="what")["images"])


class TestConversations:
    @staticmethod
    def turn(role: str, *parts: str | Image.Image) -> dict:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        return {"role": role, "content": content}

    def test_a_single_question_is_the_frame(self, tiny: MolmoProcessor) -> None:
        image = random_image(90, 130)
        for parts in ((image, "what is this ?"), ("what is this ?", image)):
            asked = [self.turn("user", *parts)]
            expected = tiny(images=image, text="what is this ?")
            batch = tiny.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
            written = tiny.apply_chat_template(asked, add_generation_prompt=True)
            again = tiny(images=image, text=written)
            assert all(torch.equal(again[name], expected[name]) for name in expected)

    def test_turns(self, tiny: MolmoProcessor) -> None:
        turns = [
            self.turn("system", "this is"),
            {"role": "user", "content": "what ?"},
            self.turn("assistant", "this"),
            self.turn("user", "is ", "this ?"),
        ]
        expected = "<eos> User: this is what ? Assistant: this User: is this ?"
        assert tiny.apply_chat_template(turns) == expected
        assert tiny.apply_chat_template(turns, add_generation_prompt=True) == expected + " Assistant:"
        with pytest.raises(Exception, match="expected the role system, user or assistant, got tool"):
            tiny.apply_chat_template([self.turn("tool", "what")])

    def test_a_template_of_the_files_is_kept(self, tiny: MolmoProcessor, tmp_path: Path) -> None:
        MolmoProcessor(tiny.image_processor, tiny.tokenizer, chat_template="mine").save_pretrained(tmp_path)
        assert AutoProcessor.from_pretrained(tmp_path).chat_template == "mine"


class TestPipeline:
    @pytest.fixture(scope="class")
    def pipe(self) -> Any:
        model, processor = load_bundled()
        return pipeline("image-text-to-text", model=model, processor=processor)

    def test_a_batch_is_answered_as_one_by_one(self, pipe: Any) -> None:
        images = [random_image(56, 56), random_image(130, 60), random_image(60, 200)]
        texts = ["vqa2: What is it?", "vqa2: How many red things are there?", "vqa2: Where is it?"]
        options = {"return_tensors": True, "generate_kwargs": {"max_new_tokens": 4, "min_new_tokens": 4}}
        batch = pipe(images=images, text=texts, **options)
        chats = [[TestConversations.turn("user", image, text)] for image, text in zip(images, texts)]
        for image, text, chat, found in zip(images, texts, chats, batch):
            for asked in ({"images": image, "text": text}, {"text": chat}):
                alone = pipe(**asked, **options)[0]["generated_token_ids"]
                assert torch.equal(found["generated_token_ids"][-4:], alone[-4:])
        # what a pipeline prepares row by row, it pads without knowing of positions
        with pytest.raises(ValueError, match="row . does not point at its image tokens.*batch_size 1"):
            pipe(text=chats, batch_size=3, **options)
