import hashlib
import pickle
import threading
import time
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from i2c_fast.errors import UserError
from i2c_fast.models import BACKBONES, ResNet18Body, load_imagenet_weights

State = dict[str, Tensor]


@pytest.fixture
def body() -> ResNet18Body:
    return ResNet18Body()


@pytest.fixture
def state() -> State:
    """A checkpoint as torchvision's: the body's tensors, then those of the layers it leaves out."""
    state = {name: torch.full_like(value, 2) for name, value in ResNet18Body().state_dict().items()}
    return state | {"layer4.0.conv1.weight": torch.zeros(512, 256, 3, 3), "fc.bias": torch.zeros(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of resnet18's checkpoint in an empty hub cache."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / BACKBONES["resnet18"].weights_file


def save(checkpoint: object, path: Path) -> Path:
    torch.save(checkpoint, path)
    return path


def failure(body: ResNet18Body, source: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_imagenet_weights(body, "resnet18", source)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_checkpoint_fills_every_tensor_of_the_body(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    report = load_imagenet_weights(body, "resnet18", save(state, tmp_path / "w.pth"))
    assert all((value == 2).all() for value in body.state_dict().values())
    assert set(report.loaded) == set(body.state_dict()) and report.missing == ()


def test_layers_the_body_leaves_out_are_reported(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    report = load_imagenet_weights(body, "resnet18", save(state, tmp_path / "w.pth"))
    assert report.unexpected == ("layer4.0.conv1.weight", "fc.bias")


def test_path_may_be_a_string_that_starts_at_home(
    body: ResNet18Body, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(state, tmp_path / "w.pth")
    assert load_imagenet_weights(body, "resnet18", "~/w.pth").loaded


def test_file_format_of_torchvisions_oldest_checkpoints_is_read(
    body: ResNet18Body, state: State, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert load_imagenet_weights(body, "resnet18", tmp_path / "w.pth").loaded


def test_batch_counters_may_be_missing(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    report = load_imagenet_weights(body, "resnet18", save(old, tmp_path / "w.pth"))
    assert report.missing == () and "bn1.running_mean" in report.loaded


def test_training_checkpoint_of_a_data_parallel_model_is_unwrapped(
    body: ResNet18Body, state: State, tmp_path: Path
) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    report = load_imagenet_weights(body, "resnet18", save(wrapped, tmp_path / "w.pth"))
    assert "conv1.weight" in report.loaded and "fc.bias" in report.unexpected


def test_missing_tensors_are_named_and_counted(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    kept = {name: value for name, value in state.items() if not name.startswith("layer1.0.")}
    message = failure(body, save(kept, tmp_path / "w.pth"))
    assert "w.pth" in message and "layer1.0.conv1.weight, layer1.0.bn1.weight" in message and "and 7 more" in message


def test_wrong_shape_is_named_with_both_shapes(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    message = failure(body, save(state, tmp_path / "w.pth"))
    assert "conv1.weight is 64x3x3x3, needs 64x3x7x7" in message


def test_refused_checkpoint_leaves_the_body_alone(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in body.state_dict().items()}
    state["layer3.1.conv2.weight"] = torch.zeros(1)
    failure(body, save(state, tmp_path / "w.pth"))
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())


def test_another_backbones_checkpoint_is_refused(body: ResNet18Body, tmp_path: Path) -> None:
    vgg = {"features.0.weight": torch.zeros(64, 3, 3, 3)}
    assert "not a resnet18 checkpoint" in failure(body, save(vgg, tmp_path / "w.pth"))


def test_unknown_backbone_is_a_user_error(body: ResNet18Body) -> None:
    with pytest.raises(UserError, match="did you mean resnet18"):
        load_imagenet_weights(body, "resnet_18")


def test_file_that_is_not_there_is_named(body: ResNet18Body, tmp_path: Path) -> None:
    assert str(tmp_path / "none.pth") in failure(body, tmp_path / "none.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 10, 1000, 0.5, 0.999])
def test_truncated_file_is_a_user_error(
    body: ResNet18Body, state: State, tmp_path: Path, zipped: bool, kept: float
) -> None:
    torch.save(state, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    assert "cut.pth" in failure(body, tmp_path / "cut.pth")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x80\x02", b"PK\x03\x04" + bytes(100), bytes(range(256))])
def test_file_of_another_kind_is_a_user_error(body: ResNet18Body, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    assert "w.pth" in failure(body, tmp_path / "w.pth")


@pytest.mark.parametrize("checkpoint", [[1, 2], {"epoch": 3}, {"state_dict": 3}, torch.zeros(3)])
def test_contents_other_than_named_tensors_are_refused(body: ResNet18Body, tmp_path: Path, checkpoint: object) -> None:
    assert "not a state dict" in failure(body, save(checkpoint, tmp_path / "w.pth"))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(body: ResNet18Body, tmp_path: Path, zipped: bool) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"conv1.weight": Trap(sprung)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert "could run code" in failure(body, tmp_path / "w.pth")
    assert not sprung.exists()


def test_bare_pickle_is_refused_and_does_not_run(body: ResNet18Body, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    failure(body, tmp_path / "w.pth")
    assert not sprung.exists()


def test_hash_in_the_name_must_be_the_files(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    message = failure(body, save(state, tmp_path / "resnet18-0123abcd.pth"))
    assert "0123abcd" in message and "download it again" in message


def test_matching_hash_in_the_name_is_accepted(body: ResNet18Body, state: State, tmp_path: Path) -> None:
    digest = hashlib.sha256(save(state, tmp_path / "w.pth").read_bytes()).hexdigest()
    path = (tmp_path / "w.pth").rename(tmp_path / f"w-{digest[:8]}.pth")
    assert load_imagenet_weights(body, "resnet18", path).loaded


def test_download_asks_for_torchvisions_file_and_its_hash(
    body: ResNet18Body, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: asked.extend(args))
    failure(body, "imagenet")
    assert asked == ["https://download.pytorch.org/models/resnet18-f37072fd.pth", str(hub), "f37072fd"]


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("invalid hash value"), TimeoutError()])
def test_failed_download_names_file_address_and_place(
    body: ResNet18Body, hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    message = failure(body, "imagenet")
    assert "resnet18-f37072fd.pth" in message and str(hub) in message
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message


def test_cache_that_cannot_be_made_is_a_user_error(
    body: ResNet18Body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "put it at" in failure(body, "imagenet")


def test_cached_file_is_not_downloaded_but_its_hash_is_checked(
    body: ResNet18Body, state: State, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(torch.hub, "download_url_to_file", never)
    hub.parent.mkdir(parents=True)
    save(state, hub)
    assert "SHA-256" in failure(body, "imagenet")


def test_file_is_downloaded_once_for_all_who_ask_at_the_same_time(
    state: State, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def slow(url: str, place: str, *args: object, **kwargs: object) -> None:
        downloads.append(url)
        time.sleep(0.2)
        torch.save(state, place)

    monkeypatch.setattr(torch.hub, "download_url_to_file", slow)
    monkeypatch.setattr("i2c_fast.models.weights._check_hash", lambda path: None)
    reports: list[object] = []
    ask = [
        threading.Thread(target=lambda: reports.append(load_imagenet_weights(ResNet18Body(), "resnet18")))
        for _ in range(3)
    ]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len(reports) == 3 and len(downloads) == 1
