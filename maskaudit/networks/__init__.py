"""Built-in architectures and their layers."""
