"""README and docs are held to what they say: every block of code is run or parsed, every link leads somewhere.

- `python`: all blocks of a page are run, in order, in one namespace, in a folder of their own. `GIVEN` is what some
  pages take as given: a model, its inputs, the result of an earlier run. A block about real weights is only compiled.
- `bash`: on the pages of `WALKED` every `lit-depth` line is run, in the same folder, in order, and has to end with code
  0. On the others it is *only parsed*, by the command's real parser: options, values and the classes they name. Lines
  of other programs are not run: of `make` and `pip install` the targets and extras have to exist, and a program
  that `OTHERS` does not know is a mistake.
- `yaml`: only parsed, as the configuration of the command that its first line names.
- `text` is output: on the pages of `WALKED` it has to be what was printed, elsewhere it is not looked at, like `json`.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_depth.cli as cli
from lit_depth import load_bundled
from lit_depth.commands import LIGHT, every, tools
from lit_depth.tool_options import parser_of
from tests.helpers.commands import run
from tests.helpers.markdown import ROOT, Block, anchors, blocks, links, pages, shell_lines

PAGES = {page.relative_to(ROOT).as_posix(): page for page in pages()}
WALKED = {"docs/your-data.md", "docs/your-model.md", "docs/extending.md"}
UNREAD = {"text", "json", ""}
# programs that pages name and tests do not start
OTHERS = {
    "make",
    "pip",
    "python",
    "export",
    "cd",
    "lm_eval",
    "inspect",
    "lit-depth",
    "torchrun",
    "srun",
    "sbatch",
    "wandb",
}


def of_language(page: str, language: str) -> list[Block]:
    return [block for block in blocks(PAGES[page].read_text(encoding="utf-8")) if block.language == language]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if of_language(page, language)]


def given_inputs(folder: Path) -> dict[str, Any]:
    """The bundled model, its inputs for two questions about one picture, and candidates as `select` writes them."""
    from PIL import Image

    from lit_depth.data import Sample
    from lit_depth.models.prompting import prompter_for

    model, processor = load_bundled()
    image = Image.new("RGB", (84, 84), "red")
    asked = [Sample(name, "1", image, "What color is the circle?", ("red",)) for name in "ab"]
    measured = [
        {
            "mask_id": "1" * 8 + bits,
            "latency_ms": {"bound": bound},
            "chosen_by": {"quality": 0.9, "quality_ci": [0.85, 0.95], "drop_ci": [-0.01, 0.02]},
        }
        for bits, bound in (("1" * 8, 28.0), ("0" * 8, 14.0))
    ]
    result = folder / "results" / "select" / "default" / "selection.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"candidates": measured}))
    inputs = prompter_for(model, processor).encode(asked)
    return {"model": model, "processor": processor, "inputs": inputs, "image": image, "batches": [inputs] * 4}


# needs the weights that `make real` installs
REAL = "lit_depth.models.real"
# what a page takes as given
GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    page: given_inputs
    for page in ("README.md", "docs/commands.md", "docs/concepts.md", "docs/engine.md", "docs/healing.md")
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_python(block: Block, page: str, names: dict[str, Any]) -> None:
    """Run a block; one that begins with the name of a file is written there instead."""
    first = block.text.partition("\n")[0]
    code = compile("\n" * block.line + block.text, page, "exec")
    if file := re.fullmatch(r"# (\w+\.py)", first):
        Path(file[1]).write_text(block.text, encoding="utf-8")
    elif REAL not in block.text:
        exec(code, names)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(pages_with("python")) - WALKED))
def test_python_of_a_page_runs(page: str, workplace: Path) -> None:
    names = {"__name__": page, **GIVEN.get(page, lambda _: {})(workplace)}
    for block in of_language(page, "python"):
        run_python(block, page, names)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(WALKED))
def test_a_walk_succeeds_from_an_empty_folder(page: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page shows of an output (`text`, left out where three dots stand) is what was printed before."""
    names: dict[str, Any] = {"__name__": page}
    printed = ""
    for block in blocks(PAGES[page].read_text(encoding="utf-8")):
        printed += " ".join(capsys.readouterr().out.split())
        for shown in block.text.split("...") if block.language == "text" else ():
            assert " ".join(shown.split()) in printed, f"{page}:{block.line}"
        if block.language == "python":
            run_python(block, page, names)
        elif block.language == "bash":
            for words in shell_lines(block.text):
                assert words[0] in OTHERS, f"{page}:{block.line}"
                if words[0] == "lit-depth":
                    assert run(words[1:]) == 0, f"{page}:{block.line}: {' '.join(words)}"


class Parsed(cli.DepthCLI):
    """A command line that is read by the real parser, and goes no further."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def parse(words: list[str]) -> None:
    """Read a command line as ``lit-depth`` does.

    Raises:
        SystemExit: If it would be refused.
    """
    command, arguments = words[0], words[1:]
    assert command in every() or command.startswith("--"), f"there is no command {command}"
    if command.startswith("--") or {"--help", "--help-all"} & set(arguments):
        return
    if command in tools():
        if command not in LIGHT:
            parser_of(command).parse_args(arguments)
        return
    cli.main(words)


def commands_of(words: list[str]) -> list[str] | None:
    """The arguments of ``lit-depth`` in a line that starts it, by itself or by another program; None = it does not."""
    for before in (["lit-depth"], ["-m", "lit_depth"]):
        for place in range(len(words)):
            if words[place : place + len(before)] == before:
                return words[place + len(before) :]
    return None


def check_other(words: list[str]) -> None:
    program = words[0]
    assert program in OTHERS, f"{' '.join(words)}: a program that tests/test_docs.py does not know"
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in words[1:] if "=" not in target)
    if program == "pip":
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg")
        wanted = re.findall(r"(?:\.|lit_depth)\[([\w,-]+)\]", " ".join(words))
        assert {extra for some in wanted for extra in some.split(",")} <= set(settings["options.extras_require"])


@pytest.fixture
def parser_only(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands are parsed from a folder that has the configurations and the `mine.py` of the page on extending."""
    monkeypatch.setattr(cli, "DepthCLI", Parsed)
    (workplace / "configs").symlink_to(ROOT / "configs")
    (mine,) = [block.text for block in of_language("docs/extending.md", "python") if block.text[:9] == "# mine.py"]
    (workplace / "mine.py").write_text(mine)
    return workplace


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(set(pages_with("bash")) - WALKED))
def test_commands_of_a_page_are_accepted(page: str, parser_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in of_language(page, "bash"):
        for words in shell_lines(block.text):
            arguments = commands_of(words)
            try:
                parse(arguments) if arguments else check_other(words)
            except SystemExit as stop:
                assert not stop.code, f"{page}:{block.line}: {' '.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_of_a_page_is_accepted(page: str, parser_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in of_language(page, "yaml"):
        words = block.text.partition("\n")[0].removeprefix("# ").split()
        assert words[:1] == ["lit-depth"], f"{page}:{block.line}: expected a first line '# lit-depth <command> ...'"
        file = parser_only / words[words.index("--config") + 1]
        file.write_text(block.text)
        try:
            parse(words[1:])
        except SystemExit as stop:
            assert not stop.code, f"{page}:{block.line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES)
def test_languages_are_known(page: str) -> None:
    of_page = {block.language for block in blocks(PAGES[page].read_text(encoding="utf-8"))}
    assert of_page <= {"python", "bash", "yaml", *UNREAD}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for link in links(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            assert re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}(/\S*)?|mailto:\S+", link), f"{page}: {link}"
            continue
        file, _, anchor = link.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page}: {link}"


def test_a_wrong_command_is_found(parser_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["compare", "--polices", "prefix"], ["importance", "--data.num_samples", "few"], ["ingest"]):
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code == 2
    with pytest.raises(AssertionError, match="no command"):
        parse(["comparison"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs_autorefs", reason="mkdocs (extra 'docs') builds the site")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    patch.setenv("NO_MKDOCS_2_WARNING", "1")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # any warning ends it
    patch.undo()
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(site: Path) -> None:
    made = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} - {"404.md"}
    assert made == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    fetched = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"https?:|<link\b[^>]*\bhref=\"https?:|@import")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert fetched.search(text) is None, page


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lit_depth", *(f"lit_depth.{part}" for part in ("functional", "callbacks", "metrics"))]
)
def test_the_reference_has_every_public_name(name: str, site: Path) -> None:
    module = import_module(name)
    text = (site / "api" / f"{name.rpartition('.')[2]}.html").read_text(encoding="utf-8")
    found = set(re.findall(r'id="([\w.]+)"', text))
    for public in module.__all__:
        thing = getattr(module, public)
        # where a module has the same name, what stands in it is shown under its own place
        assert found & {f"{name}.{public}", f"{thing.__module__}.{thing.__qualname__}"}, public


def test_docstrings_are_shown_as_markdown() -> None:
    pytest.importorskip("griffe", reason="griffe (extra 'docs') reads the docstrings")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = "See :func:`~lit_depth.masked`.\n\n    >>> 1 + 1\n    2\n\nArgs:\n    x: A number."
    shown = "See `lit_depth.masked`.\n\n    ```python\n    >>> 1 + 1\n    2\n    ```\n\nArgs:\n    x: A number."
    assert module.as_markdown(given) == shown


def test_the_citation_file_is_valid() -> None:
    """The keys that version 1.2.0 of the format requires, and the version that is installed."""
    import lit_depth

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == lit_depth.__version__ and citation["license"] == "Apache-2.0"
    assert citation["authors"] and all(
        set(author) <= {"name", "family-names", "given-names"} for author in citation["authors"]
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])


def test_the_changelog_has_the_version_that_is_installed() -> None:
    import lit_depth

    assert f"## {lit_depth.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
