"""Conformance: does what the library says about a model hold, computed a second time by plain torch hooks?"""
