"""Tests of the image as what it is: built, run and stopped by a real engine. ``make test-image`` runs them."""
