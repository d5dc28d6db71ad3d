"""Backbones, the localization head over them, and their ImageNet weights."""

from .backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, Body, find_backbone, register_backbone
from .head import LocalizationHead
from .inception import InceptionV3Body
from .localizer import ClassMaps, Localizer, LocalizerOutput, build_localizer
from .resnet import ResNet18Body, ResNet50Body
from .vgg import VGG16Body
from .weights import LoadReport, load_imagenet_weights

__all__ = [
    "BACKBONES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backbone",
    "Body",
    "ClassMaps",
    "InceptionV3Body",
    "LoadReport",
    "LocalizationHead",
    "Localizer",
    "LocalizerOutput",
    "ResNet18Body",
    "ResNet50Body",
    "VGG16Body",
    "build_localizer",
    "find_backbone",
    "load_imagenet_weights",
    "register_backbone",
]
