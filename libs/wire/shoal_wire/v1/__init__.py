"""Generated from protos/shoal/v1 by protos/generate.py. Not edited by hand."""
