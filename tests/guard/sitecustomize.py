"""Python imports this module at its own start: it is how the offline guard reaches kernels and every other child process."""

import offline_guard

offline_guard.install()
