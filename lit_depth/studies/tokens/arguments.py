"""What ``lit-depth tokens`` is asked for, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from lit_depth.functional.arguments import check_least

_SOURCES = ("prompt", "prompt_file", "prompts", "num_samples")


@dataclass(frozen=True)
class TokensArguments:
    """The arguments of ``lit-depth tokens``, which explains them.

    Raises:
        ValueError: If several sources of prompts are given, an image goes with none, or a number is out of range.
    """

    prompt: str | None = None
    prompt_file: str | None = None
    prompts: str | None = None
    image: str | None = None
    num_samples: int | None = None
    num_output_tokens: int = 1
    after_end: bool = False
    spans: bool = False

    def __post_init__(self) -> None:
        check_least(1, num_samples=self.num_samples, num_output_tokens=self.num_output_tokens)
        given = [f"--{source}" for source in _SOURCES if getattr(self, source) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of --{', --'.join(_SOURCES)}, got {' and '.join(given)}")
        if self.image is not None and self.prompt is None and self.prompt_file is None:
            raise ValueError("--image needs --prompt or --prompt_file (of several prompts, each names its own image)")

    @property
    def from_task(self) -> bool:
        """Whether questions of the task are the prompts."""
        return self.prompt is None and self.prompt_file is None and self.prompts is None
