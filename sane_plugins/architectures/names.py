"""The name of the network that every command builds unasked; light, as command lines need it for their help."""

SMALL_CNN = "small-cnn"
