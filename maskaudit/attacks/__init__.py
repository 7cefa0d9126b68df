"""Attacks on a `Target`: plain functions, one file each; `registry` lists them."""
