"""One name per thing on every command line: names of earlier versions, and short forms of the data's options.

Names of earlier versions are known on the command line and in files; each is answered with a hint on the error stream.
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

# by command: the earlier name, or that of the same thing elsewhere, and the name
RENAMED: dict[str, dict[str, str]] = {
    "compare": {"latency_repeats": "num_requests", "latency_new_tokens": "new_tokens", "max_new_tokens": "new_tokens"},
    "latency": {"max_new_tokens": "new_tokens"},
    "select": {"max_new_tokens": "new_tokens"},
}
# options of the data that every command takes without their group, unless it has one of that name of its own
SHORT = ("num_samples", "calibration_samples", "batch_size")
# the same of the trainer
_OF_TRAINER = ("executor", "executor_workers")


def current_name(argument: str, command: str, own: Collection[str]) -> str:
    """An option of the command line by the name that it has now.

    Args:
        argument: Of the command line.
        command: Which the option is of.
        own: Options that the command has without a group.

    >>> current_name("--num_samples=8", "compare", {"name"}), current_name("--num_samples", "latency", {"num_samples"})
    ('--data.num_samples=8', '--num_samples')
    """
    name, sign, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    name = name.removeprefix("--")
    new = RENAMED.get(command, {}).get(name)
    if new is not None:
        _hint(f"--{name}", f"--{new}")
        name = new
    if name in SHORT and name not in own:
        name = f"data.{name}"
    if name in _OF_TRAINER:
        name = f"trainer.{name}"
    return f"--{name}{sign}{value}"


def underscored(argument: str) -> str:
    """An option with dashes inside its name as the parsers know it.

    >>> underscored("--budget-ms=20"), underscored("--name"), underscored("my-run")
    ('--budget_ms=20', '--name', 'my-run')
    """
    name, sign, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{sign}{value}" if name.startswith("--") else argument


def current_keys(content: str) -> str:
    """The text of a file of options with the names that its options have now; what names none of old stays as it is.

    >>> current_keys("name: x # a remark")
    'name: x # a remark'
    """
    if not any(name in content for names in RENAMED.values() for name in names):
        return content
    import yaml  # the help of a command does without it

    from lit_depth.results.reading import load_yaml

    try:
        options = load_yaml(content)
    except yaml.YAMLError:
        return content  # whoever reads it says what is wrong with it
    if not isinstance(options, dict):
        return content
    # options of one command, or of several under their names
    names = {old: new for names in RENAMED.values() for old, new in names.items()}
    within = {key: _rename(value, RENAMED[key]) for key, value in options.items() if _is_command(key, value)}
    found = _rename(options | within, names)
    return content if found == options else yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _is_command(key: Any, value: Any) -> bool:
    return key in RENAMED and isinstance(value, dict)


def _rename(options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for old in names.keys() & options.keys():
        _hint(old, names[old])
    return {names.get(name, name): value for name, value in options.items()}


def _hint(old: str, new: str) -> None:
    print(f"hint: {old} is now {new}", file=sys.stderr)
