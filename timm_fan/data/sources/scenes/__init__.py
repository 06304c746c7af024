"""Scenes: drawn multi-label images in the layout of COCO, the data set that comes with the package."""
from .composing import CLASSES, SCENES, SceneClass, ScenesPreset, compose_scene, encode_scene, write_scenes
