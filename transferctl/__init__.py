"""transferctl: from labelled images and a pretrained backbone to the model that transfers best."""

__version__ = "0.1.0"
