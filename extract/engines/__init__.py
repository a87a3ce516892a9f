"""Where work is done that is cut into tasks: processes of this machine, or a cluster that somebody operates."""
