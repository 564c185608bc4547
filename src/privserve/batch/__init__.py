"""Many rows through a cluster: in order, with checkpoints, as a client.

`job` is the whole. `sources` are what rows are read from, `asking` asks for them at the `pace` that
turns out best, `results` writes the answers, `journal` says how much of that counts, and `ray_data`
has the asking done on a Ray cluster.
"""
