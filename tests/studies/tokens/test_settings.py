"""A file of settings stands for the options that were not given."""

import pytest

from lit_depth.studies.tokens.settings import Settings, chosen, read_settings, use_checkpoint

TEXT = "model: {path: org/model}\ndevice: cpu\nnum_tokens: 3\nmax_image_resolution: 10\nprompts: [a]\n"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "prompts_config.yaml").write_text(TEXT)
    return str(tmp_path / "prompts_config.yaml")


def test_every_setting_is_read(path, tmp_path):
    assert read_settings(path) == Settings(["a"], "org/model", "cpu", 3, 10)
    (tmp_path / "list.yaml").write_text("[a, b]")
    assert read_settings(str(tmp_path / "list.yaml")) == Settings(["a", "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: [a]\nmodl: x\n", "expected a list of prompts, or prompts: with some of device"),
        ("prompts: [a]\nmodel: x\n", "expected model: {path: ...}"),
        ("prompts: [a]\nmodel: {path: [x]}\n", "expected text for model.path"),
        ("prompts: [a]\nnum_tokens: 0\n", "expected a whole number from 1 on for num_tokens"),
        ("prompts: [a]\nmax_image_resolution: true\n", "expected a whole number from 1 on for max_image_resolution"),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(str(tmp_path / "p.yaml"))


@pytest.mark.parametrize(
    ("given", "of_file", "held", "told"),
    [
        (None, 3, 3, "p.yaml: --num_output_tokens 3\n"),
        (2, 3, 2, "p.yaml has --num_output_tokens 3; --num_output_tokens 2 was given and holds\n"),
        (3, 3, 3, ""),
        (None, None, 1, ""),
        (2, None, 2, ""),
    ],
)
def test_what_is_given_holds(capsys, given, of_file, held, told):
    assert chosen("--num_output_tokens", given, of_file, "p.yaml", default=1) == held
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("given", "held"), [("bundled", "org/model"), ("mine", "mine")])
def test_the_checkpoint_of_the_file_is_loaded_unless_one_is_given(path, given, held):
    options = {"prompts": path, "model": {"checkpoint": given}}
    use_checkpoint(options)
    assert options["model"]["checkpoint"] == held
    without = {"prompts": None, "model": {"checkpoint": given}}
    use_checkpoint(without)
    assert without["model"]["checkpoint"] == given
