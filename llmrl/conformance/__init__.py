"""Conformance: losses, credit and algorithms against slow definitions, finite differences and invariances."""
