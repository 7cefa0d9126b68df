"""What hides the gradient of a healthy network: small wrappers, each with one culprit.

Each names its source and knows its way out: `unmasked()` is the same classifier with a usable gradient
and usable scores (protocol `maskaudit.zoo.interface.Unmaskable`), and `base.unmask` finds them at any depth.
"""
