"""The explorer: a page of linked views of one prompt's run, made once or asked for again by a server."""
