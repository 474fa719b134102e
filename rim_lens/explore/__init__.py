"""Linked views in notebooks: a plain Python object holds what is chosen, widgets show it and change it."""
