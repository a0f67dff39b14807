"""Times are kept with the machine that they were measured on, and a drift of it cancels."""

from __future__ import annotations

import torch

from lit_depth.studies.shared.time_masks import clock_settings, cpu_name, visiting_order


def test_another_processor_is_another_device(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    names = []
    for model in ("Some CPU @ 2.1GHz", "Other CPU"):
        file.write_text(f"processor\t: 0\nmodel\t\t: 1\nmodel name\t: {model}\n\nprocessor\t: 1\n")
        names.append(cpu_name(file))
    assert names == ["Some CPU @ 2.1GHz", "Other CPU"]
    monkeypatch.setattr("platform.processor", lambda: "")
    file.write_text("Features\t: fp\n")
    assert cpu_name(file) == cpu_name(tmp_path / "nowhere") == "cpu"
    assert clock_settings(torch.device("cpu"))["device"] == cpu_name()


def test_the_order_goes_there_and_back_and_differs_between_pairs():
    masks = [f"{index:04b}" for index in range(1, 16)]
    orders = [visiting_order(masks, index, seed=3) for index in range(6)]
    assert all(sorted(order) == sorted(masks) for order in orders)
    for there, back in zip(orders[::2], orders[1::2]):
        assert there == back[::-1]
    assert len({tuple(order) for order in orders}) == 6
