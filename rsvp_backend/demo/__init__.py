"""The one-command demo: a real Label Studio, this backend, twelve images, twelve predictions.

`process` and `label_studio` use the standard library only, because the Makefile runs them before anything is installed.
"""
