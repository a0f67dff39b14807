"""The tokenizer of the shapes model: byte-level BPE over the words of ``shapes_vqa`` and ``easy_vqa``."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lit_depth.data.tasks.shapes_vqa import COLORS, DIRECTIONS, NUMBERS, PLACES, RELATIONS, SHAPES, plural

END_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|padding|>"
# Molmo's own order; the released checkpoints append them to the text vocabulary in this order too.
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")

# Words of easy-VQA.
EASY_SHAPES = ("circle", "rectangle", "triangle")
EASY_COLORS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")


def build_tokenizer(additional_special_tokens: Sequence[str] = IMAGE_TOKENS) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the result is the same on every machine.

    All 256 bytes are in the vocabulary, so any text can be encoded; every word of the task is one token together with
    the space before it. Ids: end token 0, padding token 1, bytes, merges, then the additional special tokens.

    Args:
        additional_special_tokens: Appended last, in this order.

    >>> tokenizer = build_tokenizer()
    >>> tokenizer.tokenize(" User: vqa2: Is there a red cross? Assistant: yes")[-4:]
    ['?', 'ĠAssistant', ':', 'Ġyes']
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,  # never reached: merging stops when every word of the corpus is one token
        special_tokens=[END_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(t, special=True, normalized=False) for t in additional_special_tokens
            ]
        }
    )
    return fast


def _easy_vqa_questions() -> list[str]:
    questions = ["what color is the shape?", "what is the color of the shape?", "what shape is in the image?"]
    questions += ["what shape does the image contain?", "what shape is present?"]
    for color in EASY_COLORS:
        questions += [f"is a {color} shape present?", f"is there a {color} shape?", f"is no {color} shape present?"]
        questions += [f"does the image not contain a {color} shape?", f"what is the {color} shape?"]
        questions += [f"is there not a {color} shape in the image?"]
    for shape in EASY_SHAPES:
        questions += [f"what color is the {shape}?", f"what is the color of the {shape}?", f"is no {shape} present?"]
        questions += [f"does the image contain a {shape}?"]
    return questions


def _corpus() -> list[str]:
    # Every question template filled with every word once: enough for a merge of each word, and nothing is sampled.
    questions = [f"What color is the {shape}?" for shape in SHAPES]
    questions += [f"What shape is the {color} object?" for color in COLORS]
    questions += [
        f"How many {things} are there?" for things in [*map(plural, SHAPES), *(f"{color} objects" for color in COLORS)]
    ]
    questions += [f"Is there a {color} {shape}?" for color in COLORS for shape in SHAPES]
    questions += [f"Is there an orange {shape}?" for shape in SHAPES]
    questions += [f"Is the red {shape} {words} the blue {shape}?" for words, *_ in RELATIONS for shape in SHAPES]
    questions += [f"Which {line} is the {c} {s} in?" for line, _ in PLACES for c in COLORS for s in SHAPES]
    questions += [
        f"What {kind} is the object {words} the {shape}?"
        for kind in ("color", "shape")
        for words, _ in DIRECTIONS
        for shape in SHAPES
    ]
    answers = [*COLORS, *SHAPES, *NUMBERS, "yes", "no", *(answer for _, *answers in RELATIONS for answer in answers)]
    answers += dict.fromkeys(word for _, words in PLACES for word in words[3])
    questions += _easy_vqa_questions()
    answers += [*EASY_SHAPES, *EASY_COLORS]
    # Twice: a word seen only once, such as a number, would not be worth a merge to the trainer.
    return [f" User: vqa2: {q} Assistant:" for q in questions] + [f" {answer}" for answer in answers] * 2
