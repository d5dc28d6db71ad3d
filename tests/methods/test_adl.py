"""ADL against its paper, and where its layers stand."""

import pytest
import torch

from i2c_fast.errors import UserError
from i2c_fast.methods.adl import LAYERS, attention_dropout
from i2c_fast.models import build_localizer

from ..tiny import BUILT_IN
from .small import batch, method, small_model


def test_the_drop_mask_hides_where_the_mean_over_channels_is_high() -> None:
    features = torch.tensor([[[[1.0, 2.0], [8.0, 10.0]], [[3.0, 2.0], [8.0, 10.0]]]])  # means 2, 2, 8 and 10
    found = attention_dropout(features, torch.tensor(True), 0.75)
    assert torch.equal(found, features * torch.tensor([[1.0, 1.0], [0.0, 0.0]]))  # above 7.5


def test_the_importance_map_is_the_sigmoid_of_the_mean_over_channels() -> None:
    features = torch.randn(2, 5, 3, 4)
    found = attention_dropout(features, torch.tensor(False), 0.75)
    torch.testing.assert_close(found, features / (1 + torch.exp(-features.mean(1, keepdim=True))))


def test_each_image_has_a_maximum_of_its_own() -> None:
    features = torch.cat([torch.full((1, 2, 1, 2), 100.0), torch.tensor([[[[1.0, 4.0]], [[1.0, 4.0]]]])])
    found = attention_dropout(features, torch.tensor(True), 0.9)
    assert found[1, 0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("rate", "dropping"), [(1.0, True), (0.0, False)])
def test_layers_drop_or_weigh_in_training_and_do_nothing_in_evaluation(rate: float, dropping: bool) -> None:
    model = small_model()
    images = batch().images
    model.eval()
    plain = model.body(model.normalize(images)).detach()
    trained = method("adl", model, drop_rate=rate, layers=["layer3.1"]).eval()
    torch.testing.assert_close(model.body(model.normalize(images)).detach(), plain)
    model.body.layer3[1].train()
    model.body.layer3[1].bn1.eval(), model.body.layer3[1].bn2.eval()
    found = model.body(model.normalize(images)).detach()
    torch.testing.assert_close(found, attention_dropout(plain, torch.tensor(dropping), 0.9))
    trained.close()
    torch.testing.assert_close(model.body(model.normalize(images)).detach(), plain)


@pytest.mark.parametrize("backbone", BUILT_IN)
def test_every_backbone_has_its_places(backbone: str) -> None:
    body = build_localizer(backbone, 2, head_width=8).body
    names = dict(body.named_modules())
    assert all(name in names for name in LAYERS[type(body)])
    if backbone == "vgg16":  # after a pool, and after the ReLUs of conv4_3 and conv5_3
        assert [type(names[name]).__name__ for name in LAYERS[type(body)]] == ["MaxPool2d", "ReLU", "ReLU"]


def test_a_layer_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"adl\.layers: the body has no layer 'layer9'; there are conv1, bn1"):
        method("adl", layers=["layer9"])
