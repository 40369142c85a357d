"""Images as a condition: the CLIP encoder of image-to-video models and what is done to an image before it."""
