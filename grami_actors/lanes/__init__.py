"""Where handlers run: one file per lane, one contract (:class:`grami_actors.actor.Lane`). Floor 6."""
