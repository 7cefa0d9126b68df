"""Tests of maskaudit.loading."""
