"""Every test and every lesson runs under the same plugin: offline, quiet, one thread, watched."""

pytest_plugins = ["tests.lessons_plugin"]
