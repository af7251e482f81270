"""Nets: what feeds them and how they are trained. Imports torch, save for `options` and `samples`."""
