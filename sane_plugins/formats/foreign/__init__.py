"""Forms of other libraries that are not read, and the commands that convert them."""
