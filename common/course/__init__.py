"""The course's own machinery: find, execute and copy lessons, keep their results, the command line."""
