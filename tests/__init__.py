"""Unit tests, the lesson lint, the drift guard, and the pytest plugin that runs the lessons."""
