"""What tests and the benchmark ask of a real model: the next token of real text, and plain questions of one answer.

The text is the language reference that comes with Python (`pydoc_data.topics`), cut into windows; windows of one topic
are one cluster. It differs a little between versions of Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_depth.functional import leave_one_out, sweep_forward
from lit_depth.functional.engine.api import answer_masks

NUM_BLOCKS = 30
# the full model, and each block skipped alone
EVERY_BLOCK = torch.stack([torch.ones(NUM_BLOCKS, dtype=torch.bool), *leave_one_out(NUM_BLOCKS)])


class Windows(NamedTuple):
    """Pieces of text of one length, and the topic that each was cut from."""

    ids: Tensor  # [windows, length]
    topics: list[str]

    def take(self, positions: Sequence[int]) -> Windows:
        return Windows(self.ids[list(positions)], [self.topics[position] for position in positions])


def windows(tokenizer: Any, length: int, per_topic: int) -> Windows:
    """The first windows of each topic that is long enough, behind its heading, in the topics' order by name."""
    from pydoc_data.topics import topics

    ids, names = [], []
    for name, text in sorted(topics.items()):
        tokens = tokenizer(text.split("\n\n", 1)[-1])["input_ids"]
        if len(tokens) >= length * per_topic:
            ids += [tokens[start : start + length] for start in range(0, length * per_topic, length)]
            names += [name] * per_topic
    return Windows(torch.tensor(ids), names)


def halves(text: Windows) -> tuple[Windows, Windows]:
    """Two sets of windows that share no topic: every other topic each."""
    names = list(dict.fromkeys(text.topics))
    sides: tuple[list[int], list[int]] = ([], [])
    for position, topic in enumerate(text.topics):
        sides[names.index(topic) % 2].append(position)
    return text.take(sides[0]), text.take(sides[1])


def next_token_scores(model: Any, text: Windows, masks: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Share of next tokens that are the most likely ones, and mean log-probability of the real ones in nats.

    Returns:
        Two float64 arrays ``[masks, windows]``.
    """
    accuracy, logprob = (np.empty((len(masks), len(text.ids))) for _ in range(2))
    for column, ids in enumerate(text.ids):  # one at a time: logits of all masks are large
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        for row, logits in enumerate(sweep_forward(model, inputs, masks).logits[:, 0, :-1]):
            accuracy[row, column] = (logits.argmax(-1) == ids[1:]).double().mean()
            logprob[row, column] = -torch.nn.functional.cross_entropy(logits.float(), ids[1:])
    return accuracy, logprob


def choice_scores(model: Any, tokenizer: Any, masks: Tensor, questions: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Whether the right option of each question has the highest mean log-probability, ``[masks, questions]``."""
    scores = np.empty((len(masks), len(questions)))
    pad = tokenizer.pad_token_id
    for column, (question, *options) in enumerate(questions):
        prompt = tokenizer([f"Question: {question}\nAnswer:"] * len(options), return_tensors="pt")
        rows = [torch.tensor(tokenizer(f" {option}")["input_ids"]) for option in options]
        answers = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        inputs = {name: prompt[name] for name in ("input_ids", "attention_mask")}
        options_of_scoring = {"max_new_tokens": 0, "eos_token_id": None, "pad_token_id": pad}
        _, logprob = answer_masks(model, inputs, masks, answer_ids=answers, **options_of_scoring)
        scores[:, column] = (logprob.argmax(1) == 0).numpy()
    return scores


# the question, its answer, and three that are wrong and of the same kind
QUESTIONS = (
    ("What is the capital of France?", "Paris", "Madrid", "Rome", "Berlin"),
    ("What is the capital of Japan?", "Tokyo", "Beijing", "Seoul", "Bangkok"),
    ("What is the capital of Italy?", "Rome", "Paris", "Vienna", "Athens"),
    ("What is the capital of Egypt?", "Cairo", "Nairobi", "Lagos", "Tunis"),
    ("What is the capital of Germany?", "Berlin", "Vienna", "Bern", "Paris"),
    ("What is the capital of Spain?", "Madrid", "Lisbon", "Rome", "Lima"),
    ("Which planet is known as the Red Planet?", "Mars", "Venus", "Jupiter", "Mercury"),
    ("Which planet is the largest in the solar system?", "Jupiter", "Mars", "Venus", "Earth"),
    ("Which planet is closest to the Sun?", "Mercury", "Neptune", "Saturn", "Mars"),
    ("What does the Earth orbit?", "The Sun", "The Moon", "Mars", "Jupiter"),
    ("What is the chemical symbol of gold?", "Au", "Ag", "Fe", "Pb"),
    ("What is the chemical symbol of oxygen?", "O", "H", "N", "C"),
    ("What is water made of?", "Hydrogen and oxygen", "Carbon and iron", "Gold and silver", "Salt and sand"),
    ("Which gas do plants take in from the air?", "Carbon dioxide", "Helium", "Neon", "Argon"),
    ("Which gas do humans need to breathe?", "Oxygen", "Helium", "Methane", "Chlorine"),
    ("At how many degrees Celsius does water boil?", "100", "10", "50", "500"),
    ("How many days are there in a week?", "Seven", "Five", "Nine", "Twelve"),
    ("How many months are there in a year?", "Twelve", "Ten", "Seven", "Twenty"),
    ("How many legs does a spider have?", "Eight", "Four", "Two", "Ten"),
    ("How many sides does a triangle have?", "Three", "Four", "Five", "Six"),
    ("How many minutes are there in an hour?", "60", "24", "100", "12"),
    ("What is two plus two?", "Four", "Three", "Six", "Nine"),
    ("What is ten minus three?", "Seven", "Two", "Nine", "Four"),
    ("What color is the sky on a clear day?", "Blue", "Green", "Brown", "Black"),
    ("What color is grass?", "Green", "Purple", "Red", "Black"),
    ("What color is fresh snow?", "White", "Green", "Red", "Brown"),
    ("What color do you get by mixing blue and yellow?", "Green", "Black", "Pink", "White"),
    ("Which animal says meow?", "A cat", "A cow", "A duck", "A sheep"),
    ("Which animal gives us wool?", "A sheep", "A snake", "A frog", "A shark"),
    ("Which animal is the largest on Earth?", "The blue whale", "The mouse", "The dog", "The rabbit"),
    ("What do bees make?", "Honey", "Milk", "Silk", "Bread"),
    ("What do cows eat?", "Grass", "Fish", "Meat", "Stones"),
    ("What is frozen water called?", "Ice", "Steam", "Oil", "Sand"),
    ("Which organ pumps blood through the body?", "The heart", "The lung", "The stomach", "The skin"),
    ("Which organ do we think with?", "The brain", "The liver", "The heart", "The kidney"),
    ("Which sense do we use our ears for?", "Hearing", "Smell", "Taste", "Sight"),
    ("Who wrote Romeo and Juliet?", "William Shakespeare", "Isaac Newton", "Albert Einstein", "Mozart"),
    ("Who developed the theory of relativity?", "Albert Einstein", "William Shakespeare", "Mozart", "Napoleon"),
    ("Who was the first president of the United States?", "George Washington", "Napoleon", "Mozart", "Plato"),
    ("On which continent is Kenya?", "Africa", "Europe", "Asia", "Australia"),
    ("On which continent is China?", "Asia", "Africa", "Europe", "South America"),
    ("Which language is spoken in Brazil?", "Portuguese", "German", "Russian", "Chinese"),
    ("Which ocean lies between Europe and America?", "The Atlantic", "The Pacific", "The Indian", "The Arctic"),
    ("In which season does it snow?", "Winter", "Summer", "Spring", "Autumn"),
    ("What is the opposite of hot?", "Cold", "Warm", "Fast", "Big"),
    ("What is the opposite of up?", "Down", "Left", "Over", "Fast"),
    ("What do you use to cut paper?", "Scissors", "A spoon", "A pillow", "A cup"),
    ("Where do fish live?", "In water", "In trees", "In the air", "In fire"),
)
