"""Model folders in the diffusers format: reading them safely, and writing them."""

from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.folder_format import FolderFormat, Slot
from kinema.checkpoints.loading import load_weights
from kinema.checkpoints.model_folder import Component, ModelFolder, open_component
from kinema.checkpoints.safetensors import SafetensorsFile
from kinema.checkpoints.weights import Shapes, Stored, Tensors, Weights, check_shapes
from kinema.checkpoints.writer import save_component, save_json, save_model_index

__all__ = [
    "Component",
    "ComponentFiles",
    "FolderFormat",
    "ModelFolder",
    "SafetensorsFile",
    "Shapes",
    "Slot",
    "Stored",
    "Tensors",
    "Weights",
    "check_shapes",
    "load_weights",
    "open_component",
    "save_component",
    "save_json",
    "save_model_index",
]
