"""The name of the network that every command builds unasked; light, as the help of commands needs it."""

SMALL_CNN = "small-cnn"
