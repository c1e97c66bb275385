"""Tables, plots, maps, videos and the HTML page."""
