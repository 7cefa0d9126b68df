"""maskaudit: is this model robust, or do its gradients merely lie?"""

__version__ = "0.1.0"
