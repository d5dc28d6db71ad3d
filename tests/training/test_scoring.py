"""The configured protocol is the one that scores."""

from collections.abc import Callable

import pytest
import torch
from rich.console import Console

from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.evaluation import PaperProtocol, Scores, ScoringProtocol, WsolEvaluationProtocol
from i2c_fast.models import build_localizer
from i2c_fast.runtime import Runtime
from i2c_fast.training.run import open_split
from i2c_fast.training.scoring import score_split


def score(config: Config) -> Scores:
    model = build_localizer(config.model.backbone, 3)
    return score_split(model, open_split(config.data, "val"), Runtime(torch.device("cpu")), config, Console(quiet=True))


@pytest.mark.parametrize(
    ("override", "protocol"),
    [
        ("eval.protocol=paper", PaperProtocol(16)),
        ("eval.threshold_step=5", PaperProtocol(5)),
        ("eval.protocol=wsolevaluation", WsolEvaluationProtocol()),
    ],
)
def test_configured_protocol_scores(
    tiny_config: Callable[..., Config], override: str, protocol: ScoringProtocol
) -> None:
    scores = score(tiny_config(override))
    assert (scores.protocol, scores.thresholds.tolist()) == (protocol.name, protocol.thresholds.tolist())
    assert ("max_box_acc_v2" in scores.summary()) == (protocol.name == "wsolevaluation")
    assert scores.indices is not None and scores.indices.tolist() == list(range(12))


def test_unknown_protocol_is_an_error_of_one_line(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"eval\.protocol=maxboxacc.*'paper' or 'wsolevaluation'"):
        tiny_config("eval.protocol=maxboxacc")


@pytest.mark.parametrize(
    ("bias", "words"), [(100.0, "warning: all 12 images are predicted to be n90000002"), (float("nan"), "diverged")]
)
def test_a_model_that_sees_nothing_is_not_scored_as_if_all_were_well(
    tiny_config: Callable[..., Config], bias: float, words: str
) -> None:
    config, console = tiny_config(), Console(record=True, width=300)
    model = build_localizer("resnet18", 3)
    with torch.no_grad():
        model.head.fc8.bias[1] = bias
    if bias == bias:
        score_split(model, open_split(config.data, "val"), Runtime(torch.device("cpu")), config, console)
        assert words in console.export_text()
    else:
        with pytest.raises(UserError, match=words):
            score_split(model, open_split(config.data, "val"), Runtime(torch.device("cpu")), config, console)
