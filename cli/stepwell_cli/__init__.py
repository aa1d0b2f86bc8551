"""The command line `stepwell`: a log looked at, kept in order and carried about, without the application's code."""
