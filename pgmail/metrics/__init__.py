"""Figures for Prometheus: which there are (`families`), counted (`counts`), told (`page`), served (`listener`)."""
