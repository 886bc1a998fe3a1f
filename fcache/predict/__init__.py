"""Predictions: trained heads and the features of whole videos, to maps in official layouts.

A video goes through in windows, so that memory does not grow with its length. Queries are linked
from frame to frame as MinVIS does, and turned into maps as DVIS++ does.
"""
