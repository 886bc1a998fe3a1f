"""Tests of fcache.ops."""
