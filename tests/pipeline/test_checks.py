"""Checks before the costly part: what is sound passes and leaves nothing, what is not is one line with the remedy."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from ffp import api
from ffp.core.errors import AssetError, ConfigError
from ffp.models.prunable import PrunableModel
from ffp.pipeline.checks import check_context, check_disk, check_memory, check_token_ids
from ffp.pipeline.host import host_memory
from tests.helpers.families import CONFIGS, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_has_a_position_for_as_many_tokens_as_it_says(family):
    model = tiny(family)
    check_context(model.config, {"search.context": 64})
    with torch.no_grad():
        model(torch.zeros(1, 64, dtype=torch.long))
    with pytest.raises(
        ConfigError, match=r"^search\.context = 65 exceeds the 64 positions .* Lower it to 64 or less\.$"
    ):
        check_context(model.config, {"calibration.context": 64, "search.context": 65})


@pytest.mark.bad_input
def test_a_token_that_the_embedding_lacks_is_named_with_its_text():
    windows = {"search": torch.tensor([[0, 96]]), "test": torch.tensor([[3, 97], [0, 1]])}
    model = tiny("llama")
    check_token_ids({"search": windows["search"]}, model)
    with pytest.raises(AssetError, match=r"^the test text has the token id 97, but the model's embedding ends at 96: "):
        check_token_ids(windows, model)


def test_memory_is_refused_beyond_the_whole_and_warned_of_beyond_what_is_free(caplog):
    free, total = host_memory()
    caplog.set_level(logging.WARNING, "ffp")
    check_memory(free // 2, CPU)
    assert not caplog.messages
    check_memory(total, CPU)
    assert re.match(r"the model's jobs take about .* GB are free now\. Lower batch_tokens", caplog.messages[0])
    with pytest.raises(
        ConfigError, match=rf"on cpu, which has {total / 1e9:.1f} GB for this process\. Lower batch_tokens"
    ):
        check_memory(total + 1, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_of_a_gpu_is_its_own():
    free, total = torch.cuda.mem_get_info()
    check_memory(free, torch.device("cuda"))
    with pytest.raises(ConfigError, match=rf"on cuda, which has {total / 1e9:.1f} GB"):
        check_memory(total + 1, torch.device("cuda"))


def test_a_disk_is_tried_and_measured_and_left_as_it_was(tmp_path, monkeypatch):
    check_disk(tmp_path / "a/b/out", 1000)
    monkeypatch.chdir(tmp_path)
    for relative in ("a/b/out", "out"):
        check_disk(Path(relative), 1000)
    assert list(tmp_path.iterdir()) == []
    too_much = shutil.disk_usage(tmp_path).total + 1
    with pytest.raises(
        ConfigError, match=r"out takes about .* MB, but its disk has .* MB free\. Free the disk or name"
    ):
        check_disk(tmp_path / "a/b/out", too_much)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^cannot write .*file/below/out: .*\. Free the disk or make the"):
        check_disk(tmp_path / "file/below/out", 0)
    (tmp_path / "link").symlink_to("nowhere")  # what leads into a folder can be made there
    check_disk(tmp_path / "link/below/out", 0)
    (tmp_path / "lost").symlink_to("nowhere/lost")
    with pytest.raises(ConfigError, match=r"lost is a link to nowhere/lost, which cannot be made"):
        check_disk(tmp_path / "lost/below/out", 0)


def scaled(factor, dtype):
    """A model whose FFNs give `factor` times as much."""
    model = tiny("llama")
    for block in model.model.layers:
        block.mlp.down_proj.weight.data *= factor
    return PrunableModel(model.to(dtype))


def windows():
    ids = torch.randint(3, 97, (8, 16), generator=torch.Generator().manual_seed(0))
    return api.Windows(ids[:4], ids[4:6], ids[6:])


@pytest.mark.bad_input
def test_numbers_that_overflow_are_refused_by_the_dense_pass():
    """The weights themselves are finite in float16; what they give is not."""
    prunable = scaled(1e4, torch.float16)
    assert all(torch.isfinite(parameter).all() for parameter in prunable.model.parameters())
    with pytest.raises(
        ConfigError, match=r"is not finite: numbers overflow in float16\. Use dtype bfloat16 or float32\."
    ):
        api.calibrate(prunable, windows())
    for dtype in (torch.bfloat16, torch.float32):
        api.calibrate(scaled(1e4, dtype), windows())


def test_a_loss_that_is_not_finite_is_refused_where_the_statistics_are_sound():
    prunable = PrunableModel(tiny("llama"))
    prunable.model.get_output_embeddings().weight.data[5] = torch.inf
    with pytest.raises(
        ConfigError, match=r"dense model's loss on the search text is not finite: numbers overflow in float64"
    ):
        api.calibrate(prunable, windows())
