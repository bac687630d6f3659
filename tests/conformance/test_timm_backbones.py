"""Networks of timm: cut into stages and head they compute exactly what they computed whole; weights come in by timm's
own conversion. A dozen families and more, at small sizes; which of all models have stages is in docs/backbones.md."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transferctl.backbones import timm as library
from transferctl.errors import CheckpointError, SpecError

timm = pytest.importorskip("timm", reason="needs timm: pip install 'transferctl[timm]'")

FAMILIES = {  # pixels, some stages that must be there
    "resnet10t": (64, "stem layer1 layer4"),
    "resnext26ts": (64, "stem stages.0 stages.3"),
    "seresnext26d_32x4d": (64, "stem layer1 layer4"),
    "resnetv2_50": (32, "stem stages.0 stages.3"),
    "vit_tiny_patch16_224": (32, "embedding blocks.0 blocks.11"),
    "vit_pwee_patch16_reg1_gap_256": (32, "embedding blocks.0 blocks.11"),  # pools by the mean, a register token
    "deit_tiny_distilled_patch16_224": (32, "embedding blocks.11"),
    "vit_small_patch14_dinov2": (28, "embedding blocks.11"),
    "vit_small_patch14_reg4_dinov2": (28, "embedding blocks.11"),
    "vit_small_patch16_dinov3": (32, "embedding blocks.11"),
    "eva02_tiny_patch14_224": (28, "embedding blocks.11"),
    "beit_base_patch16_224": (32, "embedding blocks.11"),
    "convnext_atto": (64, "stem stages.0 stages.3"),
    "efficientnet_b0": (64, "stem blocks.0 blocks.6 conv_head"),
    "mobilenetv3_small_050": (64, "stem blocks.0 blocks.5"),
    "regnetx_002": (64, "stem s1 s4"),
    "swin_tiny_patch4_window7_224": (64, "stem layers.0 layers.3"),
    "densenet121": (64, "stem features.denseblock1 features.denseblock4"),
    "vgg11_bn": (32, "stem features.4 features.25"),
    "mixer_s32_224": (64, "stem blocks.0 blocks.7"),
    "maxvit_rmlp_pico_rw_256": (64, "stem stages.0 stages.3"),
    "coatnet_pico_rw_224": (64, "stem stages.0 stages.3"),
    "poolformer_s12": (64, "stem stages.0 stages.3"),
    "levit_128s": (224, "features"),  # a classifier each of class and distillation, on the same features
    "pit_ti_224": (64, "features"),
    "crossvit_tiny_240": (240, "features"),  # on two branches
    "hrnet_w18_small": (64, "features"),
    "efficientvit_m0": (64, "stem stages.0 stages.2"),  # BatchNorm before the last layer
}


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing initial weights takes most of a large network's time to build; the tests set them themselves."""
    for name in ("normal_", "trunc_normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def _whole(name: str, size: int, outputs: int = 7) -> Any:
    """timm's network, with weights that differ everywhere."""
    try:
        net = timm.create_model(name, num_classes=outputs, img_size=size)
    except TypeError:
        net = timm.create_model(name, num_classes=outputs)
    for name_of, parameter in net.named_parameters():
        wave = torch.arange(parameter.numel(), dtype=torch.float32).mul_(12.9898).sin_().view_as(parameter)
        if parameter.ndim > 1 and "token" not in name_of and "pos_embed" not in name_of:
            parameter.data = wave.mul_((3 / parameter[0].numel()) ** 0.5)
        else:
            parameter.data = wave.mul_(0.1).add_(1.0 if name_of.endswith("weight") else 0.0)
    return net.eval()


def _images(size: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_head_of_backbone_is_timms_own_network(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size, expected_stages = FAMILIES[name]
    whole, images = _whole(name, size), _images(size)
    backbone, head = library.build(name, image_size=size, state=whole.state_dict())
    assert head is not None
    backbone.eval()
    with torch.no_grad():
        expected = whole(images)
        features = backbone(images)
        assert torch.equal(head.eval()(features), expected)
        x, stages = images, backbone.stages()
        for count, stage in enumerate(stages[:-1], 1):  # whichever stages are frozen, the rest goes on from there
            x = stage.forward(x)
            assert torch.equal(backbone(x.clone(), count).pooled, features.pooled), stage.name
    assert expected.shape == (2, 7) and expected.isfinite().all() and expected.std() > 0
    assert features.pooled.shape == (2, backbone.feature_dim)
    if features.maps is not None:
        assert features.maps.ndim == 4 and features.maps.shape[2] == features.maps.shape[3]

    names = [stage.name for stage in stages]
    assert names[-1] == "pool" and len(set(names)) == len(names) and set(expected_stages.split()) <= set(names)
    assert bool(backbone.notes) == (names == ["features", "pool"])
    owners = {n: sum(stage.owns(n) for stage in stages) for n in backbone.net.state_dict()}
    assert set(owners.values()) == {1}, [n for n, count in owners.items() if count != 1]
    assert len(list(backbone.net.parameters())) + len(list(head.parameters())) == len(list(whole.parameters()))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "resnet10t"])
def test_a_copy_computes_with_its_own_weights(name: str) -> None:
    import copy

    backbone, _ = library.build(
        name, image_size=28 if "14" in name else 32, state=_whole(name, 28 if "14" in name else 32).state_dict()
    )
    images = _images(backbone.image_size)
    with torch.no_grad():
        before = backbone.eval()(images).pooled
        copied = copy.deepcopy(backbone)
        for parameter in copied.parameters():
            parameter.mul_(1.5)
        assert torch.equal(backbone(images).pooled, before) and not torch.equal(copied(images).pooled, before)


def test_random_weights_follow_torchs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    digests = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.add(library.build("test_vit", image_size=32)[0].fingerprint())
    assert len(digests) == 2


def test_the_fingerprint_tells_libraries_apart() -> None:
    from transferctl.backbones import torchvision

    state = _whole("resnet18", 32).state_dict()
    of_timm, _ = library.build("resnet18", image_size=32, state=state)  # timm has torchvision's parameter names
    of_torchvision, _ = torchvision.build("resnet18", image_size=32, state=state)
    with torch.no_grad():
        assert torch.equal(of_timm.eval()(_images(32)).pooled, of_torchvision.eval()(_images(32)).pooled)
    assert of_timm.fingerprint() != of_torchvision.fingerprint()


# -- weights in the layouts that they are published in ------------------------------------------------


def _dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def _dinov2_registers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The class token has a position embedding there, which timm adds to it."""
    place = torch.full_like(state["cls_token"], 0.25)
    return _dinov2({
        **{name: tensor for name, tensor in state.items() if name != "reg_token"},
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - place,
        "pos_embed": torch.cat([place, state["pos_embed"]], dim=1),
    })  # fmt: skip


def _convnext(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As Facebook's repository has it."""
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d+)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    found = {}
    for name, tensor in state.items():
        for pattern, into in rules:
            name = re.sub(pattern, into, name)
        found[name] = tensor.flatten(1) if "pwconv" in name and tensor.ndim == 4 else tensor
    return found


LAYOUTS = {
    "vit_small_patch14_dinov2": (28, _dinov2, False),
    "vit_small_patch14_reg4_dinov2": (28, _dinov2_registers, False),
    "vit_base_patch16_224.mae": (32, dict, False),
    "deit_tiny_patch16_224": (32, dict, True),
    "deit_tiny_distilled_patch16_224": (32, dict, True),
    "convnext_atto": (32, _convnext, True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_as_their_authors_published_them(name: str) -> None:
    size, layout, has_head = LAYOUTS[name]
    whole = _whole(name, size)
    state = whole.state_dict()
    given = layout(state if has_head else {n: t for n, t in state.items() if not n.startswith("head")})
    assert (given.keys() == state.keys()) == (has_head and layout is dict)
    backbone, head = library.build(name, image_size=size, state=given)
    assert (head is not None) == has_head
    with torch.no_grad():
        pooled = whole.forward_head(whole.forward_features(_images(size)), pre_logits=True)
        found = backbone.eval()(_images(size)).pooled
        if head is not None:
            assert torch.equal(head.eval()(backbone(_images(size))), whole(_images(size)))
        if pooled.shape == found.shape:  # of two tokens both are kept
            torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "trained_at", "size"),
    [
        ("vit_small_patch14_dinov2", 70, 28),
        ("vit_tiny_patch16_224", 64, 96),
        ("swin_tiny_patch4_window7_224", 224, 64),
        ("eva02_tiny_patch14_224", 56, 28),
    ],
)
@pytest.mark.parametrize("has_head", [True, False])
def test_at_another_size_position_embeddings_are_resized_as_timm_does(
    name: str, trained_at: int, size: int, has_head: bool
) -> None:
    """A fine-tuned checkpoint has no classifier of timm's; some of its converters know timm's own layout by that."""
    state = _whole(name, trained_at).state_dict()
    overlay = {"state_dict": state, "num_classes": 7, "custom_load": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, how timm indexes
        resized = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, img_size=size)
    prefix = resized.pretrained_cfg["classifier"]
    given = {n: t for n, t in state.items() if has_head or not n.startswith(f"{prefix}.")}
    backbone, head = library.build(name, image_size=size, state=given)
    assert (head is not None) == has_head
    expected = resized.state_dict()
    for key, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_what_does_not_fit_is_named() -> None:
    state = _whole("vit_tiny_patch16_224", 32).state_dict()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(2, 3)
    state["decoder.weight"] = state.pop("norm.weight")
    with pytest.raises(CheckpointError) as caught:
        library.build("vit_tiny_patch16_224", image_size=32, state=state, label="x.pth")
    text = str(caught.value)
    assert text.startswith("x.pth: these weights do not fit vit_tiny_patch16_224: 1 missing (norm.weight)")
    assert "1 unexpected (decoder.weight)" in text and "blocks.0.attn.qkv.weight is 2×3, not 576×192" in text


@pytest.mark.parametrize(
    "name", ["convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"]
)
def test_weights_of_another_network_are_refused(name: str) -> None:
    state = _whole("resnet10t", 32).state_dict()
    with pytest.raises(CheckpointError, match=f"^x.pth: these weights do not fit {name}: "):
        library.build(name, image_size=64, state=state, label="x.pth")


CLIP = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"


def test_a_projection_to_text_is_no_classifier() -> None:
    state = _whole(CLIP, 32, outputs=512).state_dict()
    backbone, head = library.build(CLIP, image_size=32, state=state)
    assert head is None and "maps to a space shared with text" in backbone.notes[0]
    tuned = _whole(CLIP, 32).state_dict()
    assert library.build(CLIP, image_size=32, state=tuned)[1] is not None


# -- names, sizes, preprocessing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "backbone.name: timm has no model 'resnet81'; did you mean resnet"),
        ("resnet18.nonesuch", "backbone.name: timm has no weights 'nonesuch' of resnet18; there is resnet18.a1_in1k, "),
        ("hf-hub:timm/resnet18", "backbone.name: timm has no model 'hf-hub:timm/resnet18'"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(name: str, message: str) -> None:
    for asks in (lambda: library.build(name, image_size=32), lambda: library.default_preprocessing(name)):
        with pytest.raises(SpecError) as caught:
            asks()
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("name", "size"), [("vit_tiny_patch16_224", 8), ("vgg11", 8), ("levit_128s", 30)])
def test_a_size_that_a_network_cannot_take_is_the_specs_fault(name: str, size: int) -> None:
    with pytest.raises(SpecError, match=rf"^preprocess.crop: {name} cannot take {size}×{size} pixels \(.+\); set ano"):
        library.build(name, image_size=size)


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_small_patch14_dinov2.lvd142m", "convnext_atto", "test_vit"])
def test_preprocessing_is_timms_own(name: str) -> None:
    from timm.data import create_transform, resolve_data_config

    ours = library.default_preprocessing(name)
    transform = create_transform(**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()))
    resize, crop, _, normalise = transform.transforms
    assert (ours.resize, ours.crop) == (resize.size, crop.size[0])
    assert ours.interpolation == resize.interpolation.value
    assert (ours.mean, ours.std) == (tuple(normalise.mean.tolist()), tuple(normalise.std.tolist())) or torch.allclose(
        torch.tensor([ours.mean, ours.std]), torch.stack([normalise.mean, normalise.std])
    )


# -- published weights --------------------------------------------------------------------------------

NAME = "test_resnet.r160_in1k"


def _in_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, state: dict[str, Tensor], file: str) -> Path:
    """The hub's cache as its library leaves it: a file called by its SHA-256, a link with the name that people know."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(folder))
    repository = folder / f"models--timm--{NAME}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for made in (repository / "blobs", repository / "refs", snapshot):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    raw = folder / "raw"
    save_file(state, raw) if file.endswith(".safetensors") else torch.save(state, raw)
    blob = repository / "blobs" / hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.rename(blob)
    (snapshot / file).symlink_to(blob)
    return blob


def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_published_weights_come_from_the_hubs_cache_with_imagenets_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    state = _whole("test_resnet", 32, outputs=1000).state_dict()
    _in_hub(monkeypatch, tmp_path, state, file)
    _no_network(monkeypatch)
    found = library.published("test_resnet", "DEFAULT")
    assert found.origin == f"timm {NAME}" and found.state.keys() == state.keys()
    assert found.names[0] == ("n01440764", "tench, Tinca tinca") and len(found.names) == 1000
    _, head = library.build("test_resnet", image_size=32, state=found.state)
    assert head is not None


def test_a_file_that_is_not_what_the_hub_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = _in_hub(monkeypatch, tmp_path, _whole("test_resnet", 32, outputs=1000).state_dict(), "model.safetensors")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors: its SHA-256 starts with .* remove it$"):
        library.published(NAME, "DEFAULT")


def test_without_a_network_the_repository_the_file_and_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    _no_network(monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        library.published(NAME, "DEFAULT")
    text = str(caught.value)
    for part in (str(tmp_path / "hub"), "Name or service not known", "model.safetensors", f"timm/{NAME}", "HF_HOME"):
        assert part in text


def test_published_names_are_tags_of_the_name() -> None:
    with pytest.raises(SpecError, match=r"^backbone.weights: is IMAGENET1K_V1, but .* there is resnet18.a1_in1k, "):
        library.published("resnet18", "IMAGENET1K_V1")


def test_an_encoder_that_timm_keeps_from_classification_is_refused_by_its_name() -> None:
    name = "qwen3_vit_88m_enc"
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with pytest.raises(SpecError, match=rf"^backbone.name: timm's {name} cannot be used here: .+classification"):
        library.build(name, image_size=64)
