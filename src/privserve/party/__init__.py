"""One party's process: its HTTP front, its sessions and its channels to the other parties."""
