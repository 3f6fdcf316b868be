"""The same supervisor over a container of this machine, through the docker SDK, which nothing else in `vast` needs."""
