"""Model folders in the diffusers format: reading them safely, and writing them."""

from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.loading import load_weights
from kinema.checkpoints.model_folder import Component, ModelFolder, PipelineOptions, open_component
from kinema.checkpoints.safetensors import SafetensorsFile
from kinema.checkpoints.weights import Shapes, Weights, check_shapes
from kinema.checkpoints.writer import save_component, save_json, save_model_index

__all__ = [
    "Component",
    "ComponentFiles",
    "ModelFolder",
    "PipelineOptions",
    "SafetensorsFile",
    "Shapes",
    "Weights",
    "check_shapes",
    "load_weights",
    "open_component",
    "save_component",
    "save_json",
    "save_model_index",
]
