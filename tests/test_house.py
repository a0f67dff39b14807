"""The rules of the house (see CONTRIBUTING.md): where things stand, and what may know of what."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from lit_depth.commands import studies
from tests.helpers.house import (
    ROOT,
    circles,
    code_words,
    defined_names,
    imports,
    mask_checks,
    mirror,
    module_name,
    private_names,
    sources,
    two_signatures,
)

SOURCES = sources()
# rule 2: families of models, the names of their inputs, and the names by which one of them is prompted
FAMILY = re.compile(
    "|".join(
        [
            *(
                "aria",
                "aya_",
                "bamba",
                "bloom",
                "cohere",
                "deepseek",
                "falcon",
                "gemma",
                "glm4",
                "gpt_?neox",
                "gpt_?oss",
            ),
            *("gpt_?2", "granite", "idefics", "internvl", "jamba", "janus", "llama", "llava", "mamba", "ministral"),
            *("minimax", "mistral", "mixtral", "molmo", "nemotron", "olmo", "paligemma", "phi[34]", "pixtral", "qwen"),
            *("reformer", "rwkv", "smollm", "smolvlm", "xlnet", "xlstm"),
            *(
                "image_grid_thw",
                "image_input_idx",
                "image_masks",
                "long_caption",
                "prompt_style",
                "rope_deltas",
                "vqa2:",
            ),
        ]
    ).replace("aria", r"\baria\b"),
    re.IGNORECASE,
)
AT_HOME = ("lit_depth/models/", "lit_depth/recipes/")
# evaluations that are published under a family's name are no model: its figures can be repeated on any other
PUBLISHED = ('"molmo"', "parity must be null or molmo", "MolmoVQAAccuracy", "_MOLMO_NEW_TOKENS")
EVALUATIONS = {
    "lit_depth/data/hub.py",
    "lit_depth/data/tasks/science_qa_img.py",
    "lit_depth/metrics/__init__.py",
    "lit_depth/metrics/vqa.py",
}
# rule 3: private attributes of other libraries: in which module of ours they stand, and in which of theirs
PRIVATE = {
    "lit_depth/cli.py": {"_set_seed": "lightning.pytorch.cli"},
    "lit_depth/functional/engine/decoding_configuration.py": {
        "_get_logits_processor": "transformers.generation.utils",
        "_update_model_kwargs_for_generation": "transformers.generation.utils",
    },
    "lit_depth/functional/inputs.py": {"_update_model_kwargs_for_generation": "transformers.generation.utils"},
    "lit_depth/functional/masking/sublayers.py": {"_gradient_checkpointing_func": "transformers.modeling_layers"},
    "lit_depth/functional/model_state.py": {"_attn_implementation": "transformers.configuration_utils"},
    # names and folder of a run that is about to begin: no argument of the logger says them later
    "lit_depth/integrations/wandb.py": {"_wandb_init": "lightning.pytorch.loggers.wandb"},
    # the first is documented, in spite of its name; the second is what an interpreter runs at its end
    "lit_depth/interrupts.py": {"_exit": "os", "_run_exitfuncs": "atexit"},
    "lit_depth/models/chat_templates.py": {"_get_template_variables": "transformers.utils.chat_template_utils"},
    "lit_depth/models/loading.py": {
        "_keep_in_fp32_modules": "transformers.modeling_utils",
        "_keep_in_fp32_modules_strict": "transformers.modeling_utils",
        "_model_mapping": "transformers.models.auto.auto_factory",
    },
    "lit_depth/models/molmo/modeling_molmo.py": {
        "_init_weights": "transformers.modeling_utils",
        "_original_source_patterns": "transformers.core_model_loading",
    },
    "lit_depth/models/molmo/processing_molmo.py": {"_merge_kwargs": "transformers.processing_utils"},
    # what DDP leaves alone; torch's own way to say it is private too
    "lit_depth/models/tensor_parallel.py": {
        "_ddp_params_and_buffers_to_ignore": "lightning.pytorch.overrides.distributed"
    },
    # the types of options have no public name
    "lit_depth/options.py": {
        "_actions": "argparse",
        "_check_type_": "jsonargparse._typehints",
        "_typehint": "jsonargparse._typehints",
        "_typehints": "jsonargparse",
    },
}
# rule 4: where masks come in that are no `MaskSet`, and why
DOORS = {
    "lit_depth/functional/masks.py": "the check itself",
    "lit_depth/functional/masking/skip.py": "`masked` is public and takes one plain mask",
    "lit_depth/studies/shared/mask_grid.py": "a policy may be somebody's own function",
}


def test_a_command_has_one_signature():
    commands = {name: SOURCES[f"lit_depth/studies/{name}/command.py"] for name in studies()}
    assert two_signatures(commands, SOURCES["lit_depth/trainer.py"]) == []


@pytest.mark.parametrize("name", studies())
def test_the_trainers_method_is_the_commands_function(name):
    from lit_depth.trainer import DepthTrainer

    function = getattr(importlib.import_module(f"lit_depth.studies.{name}.command"), name)
    assert vars(DepthTrainer)[name] is function


def test_a_second_signature_is_found():
    trainer = "class DepthTrainer(Trainer):\n    a = a\n    def b(self, model): ..."
    right, wrong = "def a(trainer, model, datamodule, name='x'): ...", "def b(model, trainer): ..."
    assert two_signatures({"a": right}, trainer) == []
    assert two_signatures({"b": wrong}, trainer) == [
        "expected a function b(trainer, model, datamodule, ...), got b(model, trainer)",
        "expected b = b in DepthTrainer",
    ]


def family_names(text: str) -> list[str]:
    return [f"{line}: {word}" for line, word in code_words(text) if FAMILY.search(word)]


def test_only_models_name_a_family():
    named = {path: family_names(text) for path, text in SOURCES.items() if not path.startswith(AT_HOME)}
    assert {path for path in EVALUATIONS if not named[path]} == set()
    assert {path: found for path, found in named.items() if found and path not in EVALUATIONS} == {}


@pytest.mark.parametrize("path", sorted(EVALUATIONS))
def test_a_published_evaluation_is_all_that_is_named_there(path):
    assert [each for each in family_names(SOURCES[path]) if not any(word in each for word in PUBLISHED)] == []


def test_a_family_in_code_is_found_and_one_in_prose_is_not():
    assert family_names('"""As Molmo does."""\nbatch["image_input_idx"] = 1  # of Molmo\n') == ['2: "image_input_idx"']
    assert family_names("from lit_depth.models.molmo import MolmoConfig\n") == ["1: molmo", "1: MolmoConfig"]


def test_private_names_of_others_are_known():
    own = defined_names(SOURCES)
    found = {path: private_names(text, own) for path, text in SOURCES.items()}
    assert {path: names for path, names in found.items() if names} == {path: set(PRIVATE[path]) for path in PRIVATE}


@pytest.mark.parametrize(("name", "home"), sorted({pair for names in PRIVATE.values() for pair in names.items()}))
def test_other_libraries_still_have_them(name, home):
    """A release that renames one fails here, in seconds."""
    module = importlib.import_module(home)
    assert hasattr(module, name) or name in inspect.getsource(module)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cache._layers; self._mine; other._mine; x.__dict__; x._lit_depth_claim", {"_layers"}),
        ("self._inherited", {"_inherited"}),
        ("super()._mine(); super()._mine_twice()", {"_mine"}),
        ("from library._room import Thing, _helper\nimport library._other as o", {"_room", "_helper", "_other"}),
        ("from lit_depth.masks import _mine", set()),
        ("getattr(config, '_attention', None); hasattr(x, 'public'); setattr(x, name, 1)", {"_attention"}),
    ],
)
def test_a_private_name_is_found(text, expected):
    assert private_names(text, {"_mine": 1, "_mine_twice": 2}) == expected


def test_masks_are_checked_at_the_door():
    found = {path: mask_checks(text) for path, text in SOURCES.items()}
    assert {path for path, checks in found.items() if checks} == set(DOORS)


def test_a_check_behind_the_door_is_found():
    text = (
        "def run(mask, scores):\n    check_mask(mask, 4)\n    assert mask.dtype == torch.bool and scores.dtype == int"
    )
    assert mask_checks(text) == ["2: check_mask(mask, 4)", "3: mask.dtype == torch.bool"]


def test_no_two_modules_import_each_other():
    modules = {module_name(path): (text, path.endswith("__init__.py")) for path, text in SOURCES.items()}
    # a package's face only hands names on
    faces = {name for name, (_, is_package) in modules.items() if is_package}
    graph = {
        name: imports(text, name, set(modules), is_package) - faces
        for name, (text, is_package) in modules.items()
        if name not in faces
    }
    assert circles(graph) == []


def test_a_circle_is_found_also_inside_a_function():
    texts = {"a": "import b", "b": "def late():\n    from c import x", "c": "from a import y", "d": "import a"}
    graph = {name: imports(text, name, set(texts)) for name, text in texts.items()}
    assert circles(graph) == [["a", "b", "c"]]


def test_every_module_is_mirrored_by_a_test():
    missing = {path: place for path in SOURCES if (place := mirror(path)) and not (ROOT / place).is_file()}
    assert missing == {}


def test_a_module_without_its_test_is_named():
    assert mirror("lit_depth/data/nowhere.py") == "tests/data/test_nowhere.py"
    assert mirror("lit_depth/data/__init__.py") is None
