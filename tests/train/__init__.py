"""Tests of maskaudit.data."""
