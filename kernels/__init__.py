"""Decoding, preprocessing and postprocessing on arrays: start with `plan`, whose steps are in `steps`."""
