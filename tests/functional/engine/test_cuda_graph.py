"""What repeats a step; that a graph does what its step does is tested on a GPU, in ``tests/test_cuda.py``."""

from __future__ import annotations

import torch

from lit_depth.functional.engine.cuda_graph import called, capture_for


def test_a_step_is_called_where_there_is_no_gpu():
    calls: list[str] = []
    run = capture_for(torch.device("cpu"))(lambda: calls.append("step"), lambda: calls.append("reset"))
    assert capture_for(torch.device("cpu")) is called and calls == []
    run()
    run()
    assert calls == ["step", "step"]
